"""A vLLM server of a few lines, over a scripted transport: it knows whether it is paused and what its weights are."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx
from safetensors.torch import load_file

from tests.vllm_server import TinySource

Trouble = httpx.Response | Exception
UPDATE_ROUTES = [
    "/pause",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/reset_prefix_cache",
    "/resume",
]


class ScriptedVLLM:
    """Answers like vLLM 0.32 with our extension.

    Args:
        troubles: by route, what its first calls get instead of an answer.
    """

    def __init__(self, source: TinySource | None = None, **troubles: Sequence[Trouble]) -> None:
        self.source = source or TinySource()
        self.troubles = {f"/{route}": list(each) for route, each in troubles.items()}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.label = "default"
        self.paused = False
        self.updating = False
        self.names: set[str] = set()
        self.update_info: dict[str, Any] = {}

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)

    @property
    def routes(self) -> list[str]:
        return [route for route, _ in self.calls]

    def count(self) -> Counter[str]:
        return Counter(self.routes)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        route = request.url.path
        body = json.loads(request.content) if request.content else {}
        if request.method == "POST" and route != "/inference/v1/generate":
            self.calls.append((str(body["method"]) if route == "/collective_rpc" else route, body))
        for trouble in self.troubles.get(route, [])[:1]:
            self.troubles[route].pop(0)
            if isinstance(trouble, Exception):
                raise trouble
            return trouble
        return httpx.Response(200, json=self._answer(route, body))

    def _answer(self, route: str, body: dict[str, Any]) -> object:
        match route:
            case "/inference/v1/generate":
                return self._scores(body["token_ids"])
            case "/collective_rpc":
                return {"results": [[self._on_worker(body["method"])]]}
            case "/pause" | "/resume":
                self.paused = route == "/pause"
            case "/start_weight_update":
                self.updating = True
            case "/update_weights":
                self._take(body["update_info"])
            case "/finish_weight_update":
                self.updating, self.label = False, body["weight_version"]
            case "/update_weight_version":
                self.label = body["new_version"]
        return {"is_paused": self.paused, "weight_version": self.label, "world_size": 1, "success": True}

    def _on_worker(self, method: str) -> object:
        if method == "served_dtype":
            return "float32"
        unfinished, self.updating = self.updating, False
        return unfinished

    def _take(self, update_info: dict[str, Any]) -> None:
        self.update_info = update_info
        if "path" in update_info:
            self.names = set(load_file(update_info["path"]))

    def _scores(self, token_ids: list[int]) -> object:
        scored = zip(token_ids[1:], self.source.score(token_ids), strict=True)
        logprobs = [None, *({str(token): {"logprob": score}} for token, score in scored)]
        return {"choices": [{"token_ids": [1], "finish_reason": "length"}], "prompt_logprobs": logprobs}

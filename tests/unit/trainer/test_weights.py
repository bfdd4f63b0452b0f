"""What a publish does when something is wrong. That it is right is tested against a real server."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file

from cellar_trainer.model import score
from cellar_trainer.policy.vllm import VLLMPolicy
from cellar_trainer.weights import FilePublisher, PublishFailed
from tests.tiny_model import tiny_model

PROBE = [3, 1, 4, 1, 5]
ROUTES = [
    "/init_weight_transfer_engine",
    "/pause",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/reset_prefix_cache",
    "/resume",
]


class Server:
    """Answers like vLLM with the weights of `model`, fails on one route, and remembers what came."""

    def __init__(self, seed: int = 0, failing: str | None = None) -> None:
        self.routes: list[str] = []
        self.bodies: list[bytes] = []
        self.names: set[str] = set()
        self._model = tiny_model(seed=seed)
        self._failing = failing

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/inference/v1/generate":
            scores = score(self._model, PROBE)
            logprobs = [None, *({str(t): {"logprob": s}} for t, s in zip(PROBE[1:], scores, strict=True))]
            choice = {"token_ids": [1], "finish_reason": "length"}
            return httpx.Response(200, json={"choices": [choice], "prompt_logprobs": logprobs})
        self.routes.append(request.url.path)
        self.bodies.append(request.content)
        if request.url.path == "/update_weights":
            self.names = set(load_file(json.loads(request.content)["update_info"]["path"]))
        return httpx.Response(500 if request.url.path == self._failing else 200, text="engine dead")


def publisher(answer: Callable[[httpx.Request], httpx.Response], folder: Path) -> FilePublisher:
    transport = httpx.MockTransport(answer)
    policy = VLLMPolicy("http://vllm", "m", transport=transport)
    return FilePublisher(
        "http://vllm", policy, probe_ids=PROBE, max_difference=1e-4, directory=folder, transport=transport
    )


async def test_a_publish_is_the_whole_sequence_in_order_and_leaves_no_file(tmp_path: Path) -> None:
    server = Server()
    published = publisher(server, tmp_path)
    metrics = await published.publish(tiny_model(), 7)
    await published.publish(tiny_model(), 8)
    assert server.routes == [*ROUTES, *ROUTES[1:]]
    assert b'"weight_version":"7"' in server.bodies[4]
    assert server.names == set(dict(tiny_model().named_parameters()))
    assert metrics["publish_difference"] < 1e-4
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ROUTES)
async def test_a_failure_anywhere_in_the_sequence_stops_it(tmp_path: Path, failing: str) -> None:
    server = Server(failing=failing)
    with pytest.raises(PublishFailed, match=rf"^{failing}.*500, restart the model server: engine dead"):
        await publisher(server, tmp_path).publish(tiny_model(), 1)
    assert server.routes == ROUTES[: ROUTES.index(failing) + 1]
    assert os.listdir(tmp_path) == []


async def test_a_server_that_kept_other_weights_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(PublishFailed, match="log-probabilities differ by"):
        await publisher(Server(seed=1), tmp_path).publish(tiny_model(seed=0), 1)


async def test_a_tied_weight_is_sent_once(tmp_path: Path) -> None:
    server = Server()
    with pytest.raises(PublishFailed, match="differ"):
        await publisher(server, tmp_path).publish(tiny_model(tied=True), 1)
    assert "lm_head.weight" not in server.names
    assert "model.embed_tokens.weight" in server.names

"""Steering a vLLM server: pauses, new weights, labels.

The routes exist with `VLLM_SERVER_DEV_MODE=1` only, and `--api-key` leaves them open unless the server also has our
middleware: keep it on a private network. Its way back from an update that did not end, and the dtype, come from our
worker extension. Both are in deploy/vllm.
"""

import asyncio
import logging
import time
from typing import Any

import httpx

from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.policy.vllm.wire import INCOMPLETE, error_message

PATIENCE_S = 330.0
"""How long somebody else's pause may last before we end it: longer than a transfer, and than the server's own lease."""
POLL_S = 0.25
GLANCE_S = 5.0
"""Longest wait for an answer that a server gives at once if it is well."""

_log = logging.getLogger(__name__)


class ControlFailed(PolicyUnavailable):
    """The server did not do as it was told.

    Args:
        refused: whether it answered at all.
    """

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class VLLMControl:
    """One server, as somebody who steers it sees it. Every method raises `ControlFailed`.

    New weights: `pause`, `start_update`, `update` once, `finish_update`, `reset_prefix_cache`, `resume`; before the
    first, `open_transfer`.

    Args:
        timeout_s: longest wait for one answer; whoever needs it shorter cancels.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        # vLLM closes the connection on which it answered 500, and the next call would run into that: no keep-alive.
        self._http = connection(url, timeout_s=timeout_s, api_key=api_key, transport=transport, kept_alive=0)

    async def pause(self) -> None:
        """Freeze what is being sampled; new requests wait. Twice is as good as once."""
        await self._post("/pause?mode=keep")

    async def resume(self) -> None:
        await self._post("/resume")

    async def is_paused(self) -> bool:
        return bool((await self._get("/is_paused"))["is_paused"])

    async def open_transfer(self, init_info: dict[str, Any]) -> None:
        """Have the workers meet the trainer, in the words of the transfer's backend."""
        await self._post("/init_weight_transfer_engine", {"init_info": init_info})

    async def start_update(self) -> None:
        """From here to `finish_update` the layers have no weights: a token would end the server."""
        await self._post("/start_weight_update")

    async def update(self, update_info: dict[str, Any]) -> None:
        """Have the workers take the weights; answers when they have them."""
        await self._post("/update_weights", {"update_info": update_info})

    async def finish_update(self, version: int) -> None:
        """From the next one on, tokens are labelled `version`."""
        await self._post("/finish_weight_update", {"weight_version": str(version)})

    async def abandon_update(self) -> None:
        """End an update that was started and not finished; then no token is used until all weights came again."""
        if any(unfinished for (unfinished,) in await self._on_workers("abandon_weight_update")):
            await self.mark_incomplete()

    async def mark_incomplete(self) -> None:
        await self._post("/update_weight_version", {"new_version": INCOMPLETE})

    async def reset_prefix_cache(self) -> None:
        """Forget what older weights read, also for requests that are paused: they are read again."""
        # vLLM 0.32 empties its caches at the pause as well, but documents that `keep` will not.
        answer = await self._post("/reset_prefix_cache?reset_running_requests=true")
        if not answer["success"]:
            raise ControlFailed("/reset_prefix_cache: the model server could not empty its cache", refused=True)

    async def weight_label(self) -> str:
        """A published version, or `wire.UNPUBLISHED` or `wire.INCOMPLETE`."""
        return str((await self._get("/weight_info"))["weight_version"])

    async def world_size(self) -> int:
        """Processes that hold a part of the model, all replicas together."""
        return int((await self._get("/get_world_size"))["world_size"])

    async def dtype(self) -> str:
        """In what the server computes, as in `float32`."""
        return str((await self._on_workers("served_dtype"))[0][0])

    async def end_pause(self, *, patience_s: float = PATIENCE_S) -> None:
        """Come back when the server is not paused; a pause that outlasts `patience_s` is ended.

        A trainer that lives pauses for no longer than a transfer takes. A server without these routes never pauses.
        """
        deadline = time.monotonic() + patience_s
        try:
            while await self.is_paused():
                if time.monotonic() >= deadline:
                    _log.warning("the model server was left paused; setting it going")
                    await self.abandon_update()
                    await self.resume()
                    return
                await asyncio.sleep(min(POLL_S, patience_s))
        except RouteMissing:
            return

    async def is_well(self) -> bool:
        """Whether it would take new weights now: it answers, and so do its workers."""
        try:
            async with asyncio.timeout(GLANCE_S):
                await self._call("GET", "/health")
                await self.dtype()
        except (ControlFailed, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        await self._http.aclose()

    async def _on_workers(self, method: str) -> list[list[Any]]:
        """Each worker's answer to a method of our extension."""
        try:
            answer = await self._post("/collective_rpc", {"method": method})
        except ControlFailed as failure:
            if f"no attribute '{method}'" in str(failure):
                raise RouteMissing(
                    "the model server lacks our worker extension: see deploy/vllm/README.md"
                ) from failure
            raise
        results: list[list[Any]] = answer["results"]
        return results

    async def _get(self, route: str) -> Any:
        return (await self._call("GET", route)).json()

    async def _post(self, route: str, body: dict[str, Any] | None = None) -> Any:
        return (await self._call("POST", route, body)).json()

    async def _call(self, method: str, route: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = await self._http.request(method, route, json=body)
        except httpx.HTTPError as error:
            raise ControlFailed(f"{route}: no answer from the model server: {error!r}", refused=False) from error
        if response.status_code == httpx.codes.NOT_FOUND:
            raise RouteMissing(f"{route}: the model server has no such route: set VLLM_SERVER_DEV_MODE=1")
        if not response.is_success:
            said = error_message(response)
            raise ControlFailed(f"{route}: the model server answered {response.status_code}: {said}", refused=True)
        return response


class RouteMissing(ControlFailed):
    """The server was not started to be steered, or not as we need it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, refused=True)


def connection(
    url: str,
    *,
    timeout_s: float,
    api_key: str | None,
    transport: httpx.AsyncBaseTransport | None,
    kept_alive: int = 256,
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        timeout=httpx.Timeout(timeout_s, connect=10.0, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=kept_alive),
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        trust_env=False,
        transport=transport,
    )

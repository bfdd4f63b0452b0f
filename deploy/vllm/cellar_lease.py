"""Loaded into vLLM's API server (`--middleware cellar_lease.PauseLease`): a pause that nobody ends, ends by itself.

A trainer that is killed while the server is paused, most likely in the middle of new weights, would leave every request
waiting for ever. A pause is therefore a lease: each call of a route that steers the server renews it, and when none
came for `CELLAR_PAUSE_LEASE_S` seconds (60; 0 turns this off), an update that did not end is abandoned
(`cellar_weights.CellarWeights`), its weights are labelled `incomplete`, and the server goes on.

It also has all routes that are not in `OPEN` ask for the API key, if the server has one: vLLM's own `--api-key` leaves
them open.
The lease lives in one process: use vLLM's default, one API server.
"""

import asyncio
import hmac
import json
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

INCOMPLETE = "incomplete"
"""The label of weights that are partly of one version and partly of another; the trainer takes no token of them."""
OPEN = {"v1", "v2", "inference", "cohere", "health", "metrics", "ping", "version", "load"}
"""First segments of the routes that need no key from here: guarded by vLLM, or harmless."""
STEERING = {
    "/pause",
    "/resume",
    "/init_weight_transfer_engine",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/update_weight_version",
    "/reset_prefix_cache",
    "/collective_rpc",
}
"""What a trainer calls while it brings new weights. Nothing else is a sign of its life: a request for tokens, for
example, hangs for as long as the pause does."""

_log = logging.getLogger("vllm.cellar_lease")


class PauseLease:
    def __init__(self, app: App) -> None:
        self._app = app
        self._lease_s = float(os.environ.get("CELLAR_PAUSE_LEASE_S", "60"))
        self._calls = 0
        """Steering calls that are being answered; none of them is interrupted."""
        self._expiry: asyncio.TimerHandle | None = None
        self._release: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "OPTIONS":
            return await self._app(scope, receive, send)
        route = _route(scope)
        if route.removeprefix("/").partition("/")[0] in OPEN:
            return await self._app(scope, receive, send)
        if not _has_key(scope):
            return await _refuse(send)
        if scope["method"] != "POST" or route not in STEERING:
            return await self._app(scope, receive, send)
        if self._release is not None:  # nobody pauses a server that is just being set going
            await self._release
        self._calls += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._calls -= 1
            self._renew(scope["app"].state.engine_client)

    def _renew(self, engine: Any) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self._lease_s > 0:
            self._expiry = asyncio.get_running_loop().call_later(self._lease_s, self._expire, engine)

    def _expire(self, engine: Any) -> None:
        if self._calls == 0:
            self._release = asyncio.ensure_future(_release(engine, self._lease_s))


async def _release(engine: Any, lease_s: float) -> None:
    try:
        if not await engine.is_paused():
            return
        _log.warning("paused, and no call for %.0f s: the trainer is gone, generation goes on", lease_s)
        unfinished = await engine.collective_rpc("abandon_weight_update")
        if any(unfinished_here for (unfinished_here,) in unfinished):
            _log.warning("an update of the weights did not end: they are labelled %r", INCOMPLETE)
            await engine.update_weight_version(INCOMPLETE)
        await engine.resume_generation()
    except Exception:
        _log.exception("the server could not be set going again; it has to be restarted")


def _route(scope: Scope) -> str:
    """The path by which Starlette's router goes: without `--root-path`, where the request has it."""
    path, root = str(scope["path"]), str(scope.get("root_path") or "")
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path


def _has_key(scope: Scope) -> bool:
    arguments = scope["app"].state.args
    keys = [key for key in arguments.api_key or [os.environ.get("VLLM_API_KEY")] if key]
    given = dict(scope["headers"]).get(b"authorization", b"")
    return not keys or any(hmac.compare_digest(given, f"Bearer {key}".encode()) for key in keys)


async def _refuse(send: Send) -> None:
    body = json.dumps({"error": {"message": "this route wants the API key"}}).encode()
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})

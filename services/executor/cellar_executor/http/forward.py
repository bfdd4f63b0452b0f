"""Any server answers any request on a session: one that is held by another server is sent there, and the answer back.

It comes before everything that does something: the owner alone claims the idempotency key, counts and records.
"""

import asyncio
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellar_executor.errors import Refusal
from cellar_executor.http.peers import Errand, Peers, end_to_end
from cellar_executor.http.problems import respond
from cellar_executor.ids import Ref
from cellar_executor.service import Service
from cellar_executor.telemetry import metrics

ON_A_SESSION = re.compile(r"/v1/sessions/([A-Za-z0-9][A-Za-z0-9_-]{0,63})(?:/|\Z)")
READS = ("GET", "HEAD")


class Forward:
    """ASGI middleware behind the gate, which has found the tenant and read the body."""

    def __init__(self, app: ASGIApp, *, service: Service, peers: Peers) -> None:
        self._app = app
        self._service = service
        self._peers = peers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        on_session = ON_A_SESSION.match(scope["path"]) if scope["type"] == "http" else None
        if on_session is None:
            return await self._app(scope, receive, send)
        ref = Ref(scope["state"]["tenant"], on_session[1])
        try:
            url = await self._peers.owner(ref, scope["headers"])
            if url is not None and self._service.draining and scope["method"] not in READS:
                raise Refusal("shutting_down")
        except Refusal as refusal:
            return await respond(refusal)(scope, receive, send)
        if url is None:
            return await self._app(scope, receive, send)
        await self._forward(ref, url, scope, receive, send)

    async def _forward(self, ref: Ref, url: str, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["forwarded"] = True
        errand = Errand(scope["method"], _target(scope), scope["headers"], (await receive())["body"])
        begun = False

        async def send_back(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        # In the background, so that a server that is told to stop waits for it.
        exchange = self._service.background.start(self._exchange(ref, url, errand, send_back))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait([exchange, gone], return_when=asyncio.FIRST_COMPLETED)
            if exchange.cancelled():
                raise Refusal("owner_unavailable", "this server stops, and waits for the session's no longer")
            if exchange.done():
                exchange.result()
            metrics.forwarded.labels("answered" if exchange.done() else "client_gone").inc()
        except Refusal as refusal:
            metrics.forwarded.labels("failed").inc()
            # An answer that was begun cannot be taken back: it stays incomplete, and so its connection is cut.
            if not begun:
                await respond(refusal)(scope, receive, send)
        finally:
            exchange.cancel()
            gone.cancel()

    async def _exchange(self, ref: Ref, url: str, errand: Errand, send: Send) -> None:
        async with self._peers.ask(ref, url, errand) as response:
            headers = [
                (name, value) for name, value in end_to_end(response.raw_headers) if name != b"date"
            ]  # of our own
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def _target(scope: Scope) -> str:
    path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

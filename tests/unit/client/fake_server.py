"""A scripted server: it answers one reply after the other and remembers what it was asked."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from cellar_client.aio import AsyncCellar
from cellar_client.errors import TransportError
from cellar_client.retry import DEFAULT_RETRIES, Retries
from cellar_client.sync import Cellar
from cellar_client.transport import AsyncHttpStream, HttpReply, HttpRequest, HttpStream

LIMITS = {"cell_timeout_s": 10.0, "memory_mb": 512, "processes": 16, "disk_mb": 64, "output_bytes": 65536}
RUN = {
    "run_id": "r1",
    "session_id": "s1",
    "generation": 1,
    "status": "ok",
    "cells": [],
    "duration_s": 0.01,
    "queue_s": 0.0,
}
QUICK = Retries(first_pause_s=0.001)


def session(session_id: str = "s1") -> dict[str, object]:
    return {
        "session_id": session_id,
        "status": "ready",
        "generation": 1,
        "created_at": "2026-01-01T00:00:00Z",
        "expires_at": "2026-01-01T01:00:00Z",
        "cells_total": 0,
        "cells_pending": 0,
        "runtime": "python",
        "limits": LIMITS,
        "recovery": "fail",
    }


def cell(cell_id: str = "c1", status: str = "pending") -> dict[str, object]:
    return {"cell_id": cell_id, "index": 0, "status": status}


def ok(body: object, status: int = 200) -> HttpReply:
    return HttpReply(status, json.dumps(body).encode())


def gone() -> HttpReply:
    return HttpReply(204, b"")


def problem(status: int, code: str, retry_after: str | None = None) -> HttpReply:
    return HttpReply(status, json.dumps({"title": "no", "status": status, "code": code}).encode(), retry_after)


def events(*named: tuple[str, object]) -> HttpReply:
    """A reply that streams events; one without `done` breaks off."""
    blocks = [f"event: {name}\ndata: {json.dumps(body)}\n\n" for name, body in named]
    return HttpReply(200, ": still here\n\n".join(blocks).encode())


def pieces(content: bytes) -> Iterator[bytes]:
    """As they may come over a network."""
    return (content[i : i + 7] for i in range(0, len(content), 7))


class FakeServer:
    """Replies, or what the transport raises, in their order."""

    def __init__(self, *replies: HttpReply | TransportError) -> None:
        self._replies = list(replies)
        self.requests: list[HttpRequest] = []

    def answer(self, request: HttpRequest) -> HttpReply:
        self.requests.append(request)
        reply = self._replies.pop(0)
        if isinstance(reply, TransportError):
            raise reply
        return reply

    @property
    def asked(self) -> Sequence[str]:
        return [f"{request.method} {request.target}" for request in self.requests]

    @property
    def keys(self) -> Sequence[str | None]:
        return [request.headers.get("Idempotency-Key") for request in self.requests]

    @property
    def exhausted(self) -> bool:
        return not self._replies

    def async_cellar(self, retries: Retries = DEFAULT_RETRIES) -> AsyncCellar:
        return AsyncCellar(retries=retries, transport=AsyncWire(self))

    def cellar(self, retries: Retries = DEFAULT_RETRIES) -> Cellar:
        return Cellar(retries=retries, transport=Wire(self))


class AsyncWire:
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def send(self, request: HttpRequest) -> HttpReply:
        return self._server.answer(request)

    @asynccontextmanager
    async def open(self, request: HttpRequest) -> AsyncIterator[AsyncHttpStream]:
        reply = self._server.answer(request)

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in pieces(reply.content):
                yield chunk

        yield AsyncHttpStream(reply.status, chunks(), reply.retry_after)

    async def close(self) -> None: ...


class Wire:
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def send(self, request: HttpRequest) -> HttpReply:
        return self._server.answer(request)

    @contextmanager
    def open(self, request: HttpRequest) -> Iterator[HttpStream]:
        reply = self._server.answer(request)
        yield HttpStream(reply.status, pieces(reply.content), reply.retry_after)

    def close(self) -> None: ...

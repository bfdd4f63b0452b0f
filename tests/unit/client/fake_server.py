"""A scripted server: it answers one reply after the other and remembers what it was asked."""

from collections.abc import Sequence

import httpx

from cellar_client.aio import AsyncCellar
from cellar_client.retry import DEFAULT_RETRIES, Retries
from cellar_client.sync import Cellar
from cellar_client.transport import AsyncHttpxTransport, HttpxTransport

URL = "http://cellar.test"

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


def ok(body: object, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def gone() -> httpx.Response:
    return httpx.Response(204)


def problem(status: int, code: str, retry_after: str | None = None) -> httpx.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return httpx.Response(status, json={"title": "no", "status": status, "code": code}, headers=headers)


class FakeServer:
    def __init__(self, *replies: httpx.Response | httpx.TransportError) -> None:
        self._replies = list(replies)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self._replies.pop(0)
        if isinstance(reply, httpx.TransportError):
            reply.request = request
            raise reply
        return reply

    @property
    def asked(self) -> Sequence[str]:
        return [f"{request.method} {request.url.raw_path.decode()}" for request in self.requests]

    @property
    def keys(self) -> Sequence[str | None]:
        return [request.headers.get("Idempotency-Key") for request in self.requests]

    @property
    def exhausted(self) -> bool:
        return not self._replies

    def async_cellar(self, retries: Retries = DEFAULT_RETRIES) -> AsyncCellar:
        wire = httpx.MockTransport(self)
        return AsyncCellar(retries=retries, transport=AsyncHttpxTransport(URL, api_key=None, timeout_s=1.0, wire=wire))

    def cellar(self, retries: Retries = DEFAULT_RETRIES) -> Cellar:
        wire = httpx.MockTransport(self)
        return Cellar(retries=retries, transport=HttpxTransport(URL, api_key=None, timeout_s=1.0, wire=wire))

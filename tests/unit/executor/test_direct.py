"""A route that reads its request itself answers as one that FastAPI reads for it, whatever is sent."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellar_client.schemas import QueueCells, RunRequest
from cellar_executor.http.app import create_app
from cellar_executor.http.calls import Call, Caller, Id, StrictRoute
from cellar_executor.http.direct import DirectRoute
from cellar_executor.service import Service

JSON = {"content-type": "application/json"}


def router(prefix: str, route_class: type[StrictRoute]) -> APIRouter:
    router = APIRouter(prefix=prefix, route_class=route_class)

    @router.post("/{session_id}/run")
    async def run(call: Caller, session_id: Id, body: RunRequest = RunRequest()) -> Response:  # noqa: B008  # immutable
        return echo(call, session_id, body)

    @router.post("/{session_id}/cells")
    async def queue(call: Caller, session_id: Id, body: QueueCells) -> Response:
        return echo(call, session_id, body)

    return router


def echo(call: Call, session_id: str, body: RunRequest | QueueCells) -> Response:
    return Response(f"{session_id} {call.key} {body.model_dump_json()}")


@pytest.fixture
async def both(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    app: FastAPI = create_app(service, max_body_bytes=100_000)
    app.include_router(router("/v1/fastapi", StrictRoute))
    app.include_router(router("/v1/direct", DirectRoute))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def assert_alike(both: httpx.AsyncClient, path: str, content: bytes, headers: dict[str, str]) -> None:
    answers = []
    for kind in ("fastapi", "direct"):
        reply = await both.post(f"/v1/{kind}/{path}", content=content, headers=headers)
        what: Any = reply.text if reply.status_code == 200 else [sorted(reply.json().items(), key=str)]
        answers.append((reply.status_code, reply.headers["content-type"] if reply.status_code != 200 else "", what))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("path", ["s/run", "s/cells", "-bad/run", "s%20s/cells"])
@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", {}),
        (b"", JSON),
        (b'{"code": "1"}', JSON),
        (b'{"code": "1"}', {"content-type": "application/json; charset=utf-8"}),
        (b'{"code": "1"}', {"content-type": "text/plain"}),
        (b'{"code": "1"}', {}),
        (b'{"code": "1"}', {**JSON, "idempotency-key": "k"}),
        (b'{"code": "1"}', {**JSON, "idempotency-key": ""}),
        (b'{"code": "1"}', {**JSON, "idempotency-key": "a b"}),
        (b'{"code": "1"}', {**JSON, "idempotency-key": "k" * 256}),
        (b'{"code": 1}', JSON),
        (b'{"code": "1", "more": 1, "other": 2}', JSON),
        (b'{"cell_id": "c"}', JSON),
        (b'{"code": "1", "cell_id": "../x", "timeout_s": -1}', JSON),
        (b'{"code": "1", "timeout_s": NaN}', JSON),
        (b'{"cells": [{"code": "1"}, {"code": 2}]}', JSON),
        (b'{"code": ', JSON),
        (b"[]", JSON),
        (b"null", JSON),
        (b"\xff", JSON),
        (b"[" * 5000, JSON),
    ],
)
async def test_what_is_sent(both: httpx.AsyncClient, path: str, content: bytes, headers: dict[str, str]) -> None:
    await assert_alike(both, path, content, headers)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(
        st.sampled_from(["code", "cell_id", "timeout_s", "on_error", "atomic", "cells", "x"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.text(), max_size=2),
        max_size=4,
    ),
    path=st.sampled_from(["s/run", "s/cells"]),
)
async def test_any_fields(both: httpx.AsyncClient, body: dict[str, Any], path: str) -> None:
    await assert_alike(both, path, json.dumps(body).encode(), JSON)

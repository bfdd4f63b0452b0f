"""Many operations in one request: each answered as its own route would."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from cellar_executor.http import batch
from cellar_executor.http.app import create_app
from cellar_executor.http.peers import open_peers
from cellar_executor.service import Service
from tests.unit.executor.conftest import crash
from tests.unit.executor.fakes import InProcessKernel, InProcessSupervisor


async def post(http: httpx.AsyncClient, *operations: dict[str, Any], key: str | None = None) -> list[Any]:
    reply = await http.post(
        "/v1/batch", json={"operations": operations}, headers={} if key is None else {"Idempotency-Key": key}
    )
    assert reply.status_code == 200, reply.text
    return [(result["status"], result["body"]) for result in reply.json()["results"]]


def create(session_id: str, **more: Any) -> dict[str, Any]:
    return {"op": "create", "session_id": session_id, **more}


def run(session_id: str, code: str, **more: Any) -> dict[str, Any]:
    return {"op": "run", "session_id": session_id, "code": code, **more}


async def test_operations_on_one_session_keep_their_order(http: httpx.AsyncClient) -> None:
    results = await post(
        http,
        create("a"),
        {"op": "queue", "session_id": "a", "code": "x = 1"},
        run("a", "print(x)"),
        create("b"),
        {"op": "delete", "session_id": "a"},
        {"op": "execute", "code": "print(2)"},
        run("a", "1"),
    )
    assert [status for status, _ in results] == [201, 201, 200, 201, 204, 200, 404]
    assert (results[2][1]["stdout"], results[5][1]["stdout"]) == ("1\n", "2\n")
    assert results[4][1] is None


async def test_each_result_is_that_of_its_own_route(http: httpx.AsyncClient) -> None:
    [(_, made), missing, refused] = await post(
        http, create("a"), run("none", "1"), create("b", limits={"memory_mb": 100_000})
    )
    assert made == (await http.get("/v1/sessions/a")).json()
    own = await http.post("/v1/sessions/none/run", json={"code": "1"})
    assert missing == (own.status_code, own.json())
    own = await http.post("/v1/sessions", json={"session_id": "b", "limits": {"memory_mb": 100_000}})
    assert refused == (own.status_code, own.json())


async def test_what_would_make_the_answer_too_long_is_not_begun(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MAX_REPLY_BYTES", 2000)
    await post(http, create("a"))
    results = await post(http, run("a", "print('x' * 3000)"), run("a", "y = 1"))
    assert [status for status, _ in results] == [200, 413]
    assert results[1][1]["code"] == "reply_too_large"
    assert [body["stdout"] for _, body in await post(http, run("a", "print('y' in globals())"))] == ["False\n"]


async def test_an_operation_that_fails_the_server_fails_alone(
    http: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("with a secret in it")

    monkeypatch.setattr(service, "execute", fail)
    [(status, problem), made] = await post(http, {"op": "execute", "code": "1"}, create("a"))
    assert (status, problem["code"], made[0]) == (500, "internal_error", 201)
    assert "secret" not in str(problem)


async def test_sessions_run_side_by_side_and_so_many_at_once(
    http: httpx.AsyncClient, supervisor: InProcessSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0
    run_cell = InProcessKernel.run_cell

    async def slow(self: InProcessKernel, code: str, **more: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return await run_cell(self, code, **more)

    monkeypatch.setattr(InProcessKernel, "run_cell", slow)
    await post(http, *(create(name) for name in "abc"))
    everywhere = [run(name, "1") for name in "abc"]
    await post(http, *everywhere)
    assert most == 3
    monkeypatch.setattr(batch, "AT_ONCE", 2)
    most = 0
    await post(http, *everywhere)
    assert most == 2


COUNT = "count = globals().get('count', 0) + 1; print(count)"


async def test_a_batch_that_is_sent_again_runs_nothing_twice(
    http: httpx.AsyncClient, supervisor: InProcessSupervisor
) -> None:
    asked = (
        create("a"),
        {"op": "create"},
        {"op": "queue", "session_id": "a", "code": COUNT},
        run("a", COUNT),
        run("a", COUNT),
        {"op": "execute", "code": "import time; print(time.time_ns())"},
        {"op": "delete", "session_id": "a"},
    )
    first = await post(http, *asked, key="k")
    assert await post(http, *asked, key="k") == first
    assert first[4][1]["stdout"] == "3\n"
    assert len(supervisor.kernels) == 3
    reply = await http.post("/v1/batch", json={"operations": [create("c")]}, headers={"Idempotency-Key": "k"})
    assert (reply.status_code, reply.json()["code"]) == (422, "idempotency_mismatch")


async def test_a_batch_cut_short_by_a_crash_is_finished_when_it_is_sent_again(
    http: httpx.AsyncClient, service: Service, successor: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = service.queue

    async def crash_now(*args: Any) -> Any:
        await crash(service, successor)
        return await queue(*args)

    monkeypatch.setattr(service, "queue", crash_now)
    asked = (
        create("a", recovery="replay"),
        run("a", COUNT),
        {"op": "queue", "session_id": "a", "code": COUNT},
        run("a", COUNT),
    )
    assert [status for status, _ in await post(http, *asked, key="k")] == [201, 200, 503, 503]
    app: Any = http._transport
    app.app.state.service = successor
    [_, (_, first), (queued, _), (_, last)] = await post(http, *asked, key="k")
    assert (first["stdout"], queued, last["stdout"]) == ("1\n", 201, "2\n3\n")


@pytest.mark.parametrize(
    "operations",
    [[], [{"op": "hack"}], [{"session_id": "a"}], [{"op": "run"}], [{"op": "create", "tiemout": 1}], "all", [[]]],
)
async def test_a_malformed_batch_is_refused_as_a_whole(http: httpx.AsyncClient, operations: object) -> None:
    body = {"operations": [create("a"), *operations] if isinstance(operations, list) and operations else operations}
    reply = await http.post("/v1/batch", json=body)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
    assert (await http.get("/v1/sessions/a")).status_code == 404


# --- sessions that another server holds ---------------------------------------------------------


@pytest.fixture
async def other(http: httpx.AsyncClient, service: Service, successor: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Another server than that of `http`, which it reaches over a real connection."""

    async def serve(request: web.BaseRequest) -> web.Response:
        headers = {**request.headers, "Host": "localhost"}
        reply = await http.request(request.method, request.raw_path, content=await request.read(), headers=headers)
        return web.Response(status=reply.status_code, body=reply.content, headers=reply.headers)

    async with RawTestServer(serve) as server, open_peers(successor) as peers:
        await service._store.register(str(server.make_url("")), None)
        app = create_app(successor, max_body_bytes=1_000_000, peers=peers)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            yield client


async def test_operations_are_done_where_their_sessions_are(
    http: httpx.AsyncClient, other: httpx.AsyncClient, service: Service, successor: Service
) -> None:
    await post(http, create("a"), create("b"))
    results = await post(
        other,
        {"op": "queue", "session_id": "a", "code": "x = 'a'"},
        create("c"),
        {"op": "queue", "session_id": "b", "code": "x = 'b'"},
        run("c", "x = 'c'; print(x)"),
        run("b", "print(x)"),
        {"op": "execute", "code": "print('once')"},
        run("a", "print(x)"),
        {"op": "delete", "session_id": "a"},
        run("a", "1"),
        create("a"),
    )
    assert [status for status, _ in results] == [201, 201, 201, 200, 200, 200, 200, 204, 404, 409]
    assert [results[at][1]["stdout"] for at in (3, 4, 5, 6)] == ["c\n", "b\n", "once\n", "a\n"]
    assert [live.ref.session_id for live in service._sessions] == ["b"]
    assert [live.ref.session_id for live in successor._sessions] == ["c"]


async def test_a_batch_is_done_once_whichever_servers_it_is_sent_to(
    http: httpx.AsyncClient, other: httpx.AsyncClient
) -> None:
    await post(http, create("a"))
    await post(other, create("b"))
    asked = [
        run("b", COUNT, timeout_s=5),
        run("a", COUNT, timeout_s=5),
        {"op": "queue", "session_id": "a", "code": COUNT},
        {"op": "queue", "session_id": "b", "cells": [{"code": COUNT, "cell_id": "cell"}]},
        {"op": "run", "session_id": "b", "on_error": "continue"},
        run("a", COUNT),
    ]
    first = await post(other, *asked, key="k")
    assert [first[at][1]["stdout"] for at in (0, 1, 4, 5)] == ["1\n", "1\n", "2\n", "2\n3\n"]
    assert await post(other, *asked, key="k") == first
    # The first server holds `a`, and its part is found there; it knows no way to `b`.
    again = await post(http, *asked, key="k")
    assert [again[at] for at in (1, 2, 5)] == [first[at] for at in (1, 2, 5)]


async def test_what_was_sent_on_goes_no_further(http: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    await post(http, create("a"))
    body = {"operations": [run("a", "1"), create("b"), run("a", "2")]}
    reply = await other.post(
        "/v1/batch", json=body, headers={"Cellar-Forwarded": "x", "Cellar-Batch-Positions": "5,6,9"}
    )
    results = reply.json()["results"]
    assert [result["status"] for result in results] == [503, 201, 503]
    assert results[2]["body"]["code"] == "owner_unavailable"
    assert (await http.get("/v1/sessions/a")).json()["cells_total"] == 0


async def test_an_owner_that_does_not_answer_fails_its_own_operations(
    http: httpx.AsyncClient, other: httpx.AsyncClient, service: Service
) -> None:
    await post(http, create("a"))
    await service._store.register("http://127.0.0.1:1", None)
    results = await post(other, run("a", "1"), create("b"), {"op": "delete", "session_id": "a"}, run("b", "print(1)"))
    assert [status for status, _ in results] == [503, 201, 503, 200]
    assert results[0][1]["code"] == results[2][1]["code"] == "owner_unavailable"


async def test_after_an_owner_broke_off_nothing_more_is_sent_to_it(
    http: httpx.AsyncClient, other: httpx.AsyncClient, service: Service
) -> None:
    """What was asked may have been done: what comes after it waits for the client to ask again."""
    await post(http, create("a"))
    asked = 0

    async def break_off(request: web.BaseRequest) -> web.Response:
        nonlocal asked
        asked += 1
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with RawTestServer(break_off) as server:
        await service._store.register(str(server.make_url("")), None)
        results = await post(other, run("a", "1"), run("a", "2"), run("a", "3"))
    assert [(status, body["code"]) for status, body in results] == [(503, "owner_unavailable")] * 3
    assert asked == 1


async def test_what_the_owner_refuses_is_each_ones_result(
    http: httpx.AsyncClient, other: httpx.AsyncClient, service: Service
) -> None:
    await post(http, create("a"))
    service._runner.draining = True
    results = await post(other, run("a", "1"), run("a", "2"))
    assert [(status, body["code"]) for status, body in results] == [(503, "shutting_down")] * 2


async def test_long_answers_from_elsewhere_count(
    http: httpx.AsyncClient, other: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MAX_REPLY_BYTES", 2000)
    monkeypatch.setattr(batch, "AT_ONCE", 1)
    await post(http, create("a"), create("b"))
    results = await post(other, run("a", "print('x' * 3000)"), run("a", "1"), run("b", "1"))
    assert [status for status, _ in results] == [200, 413, 413]
    assert (await http.get("/v1/sessions/b")).json()["cells_total"] == 0


@pytest.mark.parametrize("positions", ["", "1", "1,2,3", "1,1000", "1,-1", "1,x", "1,1", "1, 2", "1,\u0662"])
async def test_positions_are_one_number_for_each_operation(http: httpx.AsyncClient, positions: str) -> None:
    body = {"operations": [create("a"), create("b")]}
    headers = [(b"Cellar-Batch-Positions", positions.encode())]
    reply = await http.post("/v1/batch", json=body, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
    assert (await http.get("/v1/sessions/a")).status_code == 404

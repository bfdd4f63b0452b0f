"""Many operations in one request: each answered as its own route would."""

import asyncio
from typing import Any

import httpx
import pytest

from cellar_executor import batch
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

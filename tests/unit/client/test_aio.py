import json

import pytest

from cellar_client import calls, schemas
from cellar_client.aio import AsyncCellar
from cellar_client.errors import (
    ConnectionFailed,
    RequestTimeout,
    SessionLost,
    SessionNotFound,
    TooManySessions,
    TransportError,
)
from cellar_client.retry import NO_RETRIES
from cellar_client.transport import HttpReply
from tests.unit.client.fake_server import QUICK, RUN, AsyncWire, FakeServer, cell, gone, ok, problem, session


async def test_a_session_is_created_on_enter_and_deleted_on_exit() -> None:
    server = FakeServer(ok(session(), 201), ok({"cells": [cell()]}, 201), ok(RUN), gone())
    async with server.async_cellar() as cellar, cellar.session() as opened:
        assert opened.session_id == "s1"
        assert (await opened.queue("x = 6")).status == "pending"
        assert isinstance(await opened.run("print(x)"), schemas.Run)
    assert server.asked == [
        "POST /v1/sessions",
        "POST /v1/sessions/s1/cells",
        "POST /v1/sessions/s1/run",
        "DELETE /v1/sessions/s1",
    ]


async def test_a_session_is_deleted_after_an_error_too() -> None:
    server = FakeServer(ok(session(), 201), gone())
    with pytest.raises(ZeroDivisionError):
        async with server.async_cellar().session():
            raise ZeroDivisionError
    assert server.asked[-1] == "DELETE /v1/sessions/s1"


async def test_a_failing_delete_does_not_hide_the_error_before_it() -> None:
    server = FakeServer(ok(session(), 201), problem(401, "unauthorized"))
    with pytest.raises(ZeroDivisionError) as caught:
        async with server.async_cellar().session():
            raise ZeroDivisionError
    assert caught.value.__notes__ == ["session s1 was not deleted: unauthorized: no"]


async def test_a_lost_session_raises() -> None:
    server = FakeServer(problem(410, "session_lost"))
    with pytest.raises(SessionLost):
        await server.async_cellar().attach("s1").run()


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionFailed("refused"),
        RequestTimeout("silence"),
        problem(503, "shutting_down"),
    ],
)
async def test_all_tries_of_a_run_carry_one_key(failure: HttpReply | TransportError) -> None:
    server = FakeServer(failure, problem(409, "request_in_progress"), ok(RUN), ok(RUN))
    run_in = server.async_cellar(QUICK).attach("s1").run
    await run_in()
    assert len(server.requests) == 3
    assert len(set(server.keys)) == 1
    await run_in()
    assert len(set(server.keys)) == 2
    assert None not in server.keys


async def test_an_error_that_stays_is_raised_after_the_last_attempt() -> None:
    server = FakeServer(*[ConnectionFailed("refused") for _ in range(QUICK.attempts)])
    with pytest.raises(ConnectionFailed):
        await server.async_cellar(QUICK).info()
    assert server.exhausted


async def test_without_retries_the_first_error_is_raised() -> None:
    server = FakeServer(problem(429, "too_many_sessions", "1"))
    with pytest.raises(TooManySessions) as caught:
        await server.async_cellar(NO_RETRIES).create_session()
    assert caught.value.problem.retry_after_s == 1.0


async def test_pages_of_sessions_are_one_stream() -> None:
    pages = [
        {"sessions": [session("a"), session("b")], "next_cursor": "2/x"},
        {"sessions": [], "next_cursor": "3"},
        {"sessions": [session("c")], "next_cursor": None},
    ]
    server = FakeServer(*map(ok, pages))
    assert [found.session_id async for found in server.async_cellar().sessions(page_size=2)] == ["a", "b", "c"]
    assert server.asked == [
        "GET /v1/sessions?limit=2",
        "GET /v1/sessions?limit=2&cursor=2%2Fx",
        "GET /v1/sessions?limit=2&cursor=3",
    ]


async def test_forks_are_sessions_to_go_on_with() -> None:
    server = FakeServer(ok({"sessions": [session("a"), session("b")]}, 201), ok(RUN))
    forks = await server.async_cellar().attach("s1").fork(session_ids=["a", "b"], trust="shared")
    await forks[1].run("1")
    assert server.asked == ["POST /v1/sessions/s1/fork", "POST /v1/sessions/b/run"]
    assert json.loads(server.requests[0].content) == {"session_ids": ["a", "b"], "trust": "shared"}


async def test_files_go_as_their_bytes() -> None:
    listed = {"files": [{"path": "a b/c.bin", "size": 2}]}
    server = FakeServer(gone(), HttpReply(200, b"\xff\x00"), ok(listed), gone())
    files = server.async_cellar().attach("s1")
    await files.put_file("a b/c.bin", b"\xff\x00")
    assert server.requests[0].content == b"\xff\x00"
    assert server.requests[0].headers == {"Content-Type": "application/octet-stream"}
    assert await files.get_file("a b/c.bin") == b"\xff\x00"
    assert (await files.files()).files == [schemas.FileInfo(path="a b/c.bin", size=2)]
    await files.delete_file("a b/c.bin")
    path = "/v1/sessions/s1/files/a%20b/c.bin"
    assert server.asked == [f"PUT {path}", f"GET {path}", "GET /v1/sessions/s1/files", f"DELETE {path}"]


async def test_a_batch_gives_each_operation_its_value_or_its_error() -> None:
    refusal = {"title": "no", "status": 404, "code": "session_not_found"}
    results = [
        {"status": 201, "body": session("a")},
        {"status": 404, "body": refusal},
        {"status": 200, "body": RUN},
        {"status": 204, "body": None},
    ]
    server = FakeServer(ok({"results": results}))
    created, refused, ran, deleted = await server.async_cellar().batch(
        [calls.create_session(session_id="a"), calls.queue("b", "1"), calls.run("a", "x"), calls.delete_session("a")]
    )
    assert isinstance(created, schemas.Session)
    assert isinstance(refused, SessionNotFound)
    assert isinstance(ran, schemas.Run)
    assert deleted is None
    assert json.loads(server.requests[0].content)["operations"] == [
        {"op": "create", "session_id": "a"},
        {"op": "queue", "session_id": "b", "code": "1"},
        {"op": "run", "session_id": "a", "code": "x"},
        {"op": "delete", "session_id": "a"},
    ]


async def test_a_long_batch_is_cut_and_what_was_answered_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BATCH_SIZE", 2)
    run = {"status": 200, "body": RUN}
    server = FakeServer(ok({"results": [run, run]}), ConnectionFailed("cut"))
    results = await server.async_cellar(NO_RETRIES).batch([calls.run("s1", str(n)) for n in range(5)])
    assert [type(result) for result in results] == [schemas.Run] * 2 + [ConnectionFailed] * 3
    assert len(server.requests) == 2
    assert await server.async_cellar().batch([]) == []


async def test_what_cannot_be_batched_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BATCH_SIZE", 1)
    server = FakeServer()
    with pytest.raises(ValueError, match="GET /v1/info"):
        await server.async_cellar().batch([calls.run("s1"), calls.info()])
    assert not server.requests


async def test_the_next_try_asks_the_next_server_under_the_same_key() -> None:
    dead = FakeServer(ConnectionFailed("refused"))
    other = FakeServer(ok(session(), 201), ok(RUN))
    async with AsyncCellar(transport=[AsyncWire(dead), AsyncWire(other)], retries=QUICK) as cellar:
        created = await cellar.create_session()
        await cellar.attach(created.session_id).run("x")
    assert dead.keys[0] == other.keys[0]
    assert other.asked == ["POST /v1/sessions", "POST /v1/sessions/s1/run"]


async def test_a_session_and_its_batches_stay_with_one_server() -> None:
    first = FakeServer(ok(session(), 201), ok(RUN), ok({"results": [{"status": 200, "body": RUN}]}))
    second = FakeServer(ok(session("s2"), 201))
    async with AsyncCellar(transport=[AsyncWire(first), AsyncWire(second)]) as cellar:
        await cellar.create_session()
        await cellar.create_session()
        await cellar.attach("s1").run("x")
        await cellar.batch([calls.run("s1", "x")])
    assert first.exhausted
    assert second.exhausted

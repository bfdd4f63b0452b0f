import inspect

import httpx
import pytest

from cellar_client import schemas
from cellar_client.aio import AsyncCellar, AsyncSession
from cellar_client.errors import ConnectionFailed, SessionLost, TooManySessions
from cellar_client.retry import NO_RETRIES
from cellar_client.sync import Cellar, SyncSession
from tests.unit.client.fake_server import QUICK, RUN, FakeServer, cell, gone, ok, problem, session


def surface(kind: type[object]) -> dict[str, list[inspect.Parameter]]:
    """Public methods with their parameters; the first, `self`, is left out."""
    methods = {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}
    return {name: list(inspect.signature(method).parameters.values())[1:] for name, method in methods.items()}


@pytest.mark.parametrize(("of_async", "of_sync"), [(AsyncCellar, Cellar), (AsyncSession, SyncSession)])
def test_both_clients_offer_the_same(of_async: type[object], of_sync: type[object]) -> None:
    assert surface(of_async) == surface(of_sync)
    assert "run" in surface(of_sync) or "execute" in surface(of_sync)


def test_a_session_is_created_on_enter_and_deleted_on_exit() -> None:
    server = FakeServer(ok(session(), 201), ok({"cells": [cell()]}, 201), ok(RUN), gone())
    with server.cellar() as cellar, cellar.session() as opened:
        assert opened.session_id == "s1"
        assert (opened.queue("x = 6")).status == "pending"
        assert isinstance(opened.run("print(x)"), schemas.Run)
    assert server.asked == [
        "POST /v1/sessions",
        "POST /v1/sessions/s1/cells",
        "POST /v1/sessions/s1/run",
        "DELETE /v1/sessions/s1",
    ]


def test_a_session_is_deleted_after_an_error_too() -> None:
    server = FakeServer(ok(session(), 201), gone())
    with pytest.raises(ZeroDivisionError), server.cellar().session():
        raise ZeroDivisionError
    assert server.asked[-1] == "DELETE /v1/sessions/s1"


def test_a_failing_delete_does_not_hide_the_error_before_it() -> None:
    server = FakeServer(ok(session(), 201), problem(401, "unauthorized"))
    with pytest.raises(ZeroDivisionError) as caught, server.cellar().session():
        raise ZeroDivisionError
    assert caught.value.__notes__ == ["session s1 was not deleted: unauthorized: no"]


def test_a_lost_session_raises() -> None:
    server = FakeServer(problem(410, "session_lost"))
    with pytest.raises(SessionLost):
        server.cellar().attach("s1").run()


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout(""),
        httpx.RemoteProtocolError("cut"),
        problem(503, "shutting_down"),
    ],
)
def test_all_tries_of_a_run_carry_one_key(failure: httpx.Response | httpx.TransportError) -> None:
    server = FakeServer(failure, problem(409, "request_in_progress"), ok(RUN), ok(RUN))
    run_in = server.cellar(QUICK).attach("s1").run
    run_in()
    assert len(server.requests) == 3
    assert len(set(server.keys)) == 1
    run_in()
    assert len(set(server.keys)) == 2
    assert None not in server.keys


def test_an_error_that_stays_is_raised_after_the_last_attempt() -> None:
    server = FakeServer(*[httpx.ConnectError("refused") for _ in range(QUICK.attempts)])
    with pytest.raises(ConnectionFailed):
        server.cellar(QUICK).info()
    assert server.exhausted


def test_without_retries_the_first_error_is_raised() -> None:
    server = FakeServer(problem(429, "too_many_sessions", "1"))
    with pytest.raises(TooManySessions) as caught:
        server.cellar(NO_RETRIES).create_session()
    assert caught.value.problem.retry_after_s == 1.0


def test_pages_of_sessions_are_one_stream() -> None:
    pages = [
        {"sessions": [session("a"), session("b")], "next_cursor": "2/x"},
        {"sessions": [], "next_cursor": "3"},
        {"sessions": [session("c")], "next_cursor": None},
    ]
    server = FakeServer(*map(ok, pages))
    assert [found.session_id for found in server.cellar().sessions(page_size=2)] == ["a", "b", "c"]
    assert server.asked == [
        "GET /v1/sessions?limit=2",
        "GET /v1/sessions?limit=2&cursor=2%2Fx",
        "GET /v1/sessions?limit=2&cursor=3",
    ]

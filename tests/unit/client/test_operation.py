import json

import pytest

from cellar_client import calls
from cellar_client.errors import ConnectionFailed, InvalidReply, SessionLost, TooManySessions
from cellar_client.operation import Operation
from cellar_client.transport import HttpReply

RUN = calls.run("s1", "1 + 1", timeout_s=2.0)


def problem(status: int, code: str, **more: object) -> bytes:
    return json.dumps({"title": "no", "status": status, "code": code, **more}).encode()


def test_a_post_carries_its_key_and_only_what_differs_from_the_defaults() -> None:
    request = RUN.request(idempotency_key="k")
    assert request.headers == {"Idempotency-Key": "k", "Content-Type": "application/json"}
    assert json.loads(request.content) == {"code": "1 + 1", "timeout_s": 2.0}


@pytest.mark.parametrize("operation", [calls.cells("s1"), calls.delete_session("s1")])
def test_get_and_delete_carry_no_key(operation: Operation[object]) -> None:
    assert operation.request(idempotency_key="k").headers == {}


def test_a_refusal_is_raised_as_its_own_class() -> None:
    with pytest.raises(SessionLost):
        RUN.read(HttpReply(410, problem(410, "session_lost")))


@pytest.mark.parametrize(
    ("header", "body_s", "wait_s"), [("3", None, 3.0), ("3", 2.5, 2.5), (None, 2.5, 2.5), ("soon", None, None)]
)
def test_the_time_to_wait_comes_from_the_body_or_else_from_the_header(
    header: str | None, body_s: float | None, wait_s: float | None
) -> None:
    reply = HttpReply(429, problem(429, "too_many_sessions", retry_after_s=body_s), header)
    with pytest.raises(TooManySessions) as caught:
        RUN.read(reply)
    assert caught.value.problem.retry_after_s == wait_s


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'{"run_id": 1}'])
def test_a_good_status_with_another_body_is_not_of_the_contract(content: bytes) -> None:
    with pytest.raises(InvalidReply, match="POST /v1/sessions/s1/run"):
        RUN.read(HttpReply(200, content))


@pytest.mark.parametrize("content", [b'{"cells": []}', b'{"cells": [1, 2]}'])
def test_one_queued_cell_is_answered_by_one_cell(content: bytes) -> None:
    with pytest.raises(InvalidReply):
        calls.queue("s1", "x").read(HttpReply(201, content))


def test_a_batch_with_another_number_of_answers_is_not_of_the_contract() -> None:
    with pytest.raises(InvalidReply):
        calls.batch([RUN, RUN]).read(HttpReply(200, b'{"results": [{"status": 204}]}'))


@pytest.mark.parametrize("status", [301, 404, 500])
def test_a_refusal_without_a_problem_is_not_of_the_contract(status: int) -> None:
    with pytest.raises(InvalidReply):
        RUN.read(HttpReply(status, b"<html>"))


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_that_finds_no_server_is_a_failed_connection(status: int) -> None:
    with pytest.raises(ConnectionFailed):
        RUN.read(HttpReply(status, b"<html>"))


def test_a_server_that_is_not_ready_says_so_without_an_error() -> None:
    effective = {"tier": "warm", "namespaces": [], "seccomp": "none", "cgroup": "none", "host_uid": "shared"}
    body = {"status": "not_ready", "redis": "down", "isolation": "ok", "effective": effective}
    assert calls.readiness().read(HttpReply(503, json.dumps(body).encode())).redis == "down"


@pytest.mark.parametrize(
    ("operation", "session_id"),
    [
        (calls.run("s1"), "s1"),
        (calls.cell("s1", "c1"), "s1"),
        (calls.delete_session("s1"), "s1"),
        (calls.get_file("s1", "v1/sessions/s2"), "s1"),
        (calls.create_session(session_id="s1"), None),
        (calls.sessions_page(None, 10), None),
        (calls.execute("1"), None),
        (calls.batch([calls.execute("1"), calls.run("s1"), calls.run("s2")]), "s1"),
    ],
)
def test_an_operation_knows_the_session_that_it_is_about(operation: Operation[object], session_id: str | None) -> None:
    assert operation.session_id == session_id

"""Whatever is sent, the answer is a clear problem, and what was there before is still there."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from cellar_client.schemas import Problem
from tests.executor_process import ExecutorProcess
from tests.integration.conftest import StartExecutor
from tests.integration.executor.conftest import Session, connect

JSON = {"Content-Type": "application/json"}


def assert_problem(reply: httpx.Response, status: int, code: str) -> Problem:
    assert reply.headers["content-type"] == "application/problem+json", reply.text
    problem = Problem.model_validate_json(reply.content)
    assert (reply.status_code, problem.status, problem.code) == (status, status, code), reply.text
    return problem


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorProcess]:
    """A server with little room, and with keys."""
    flags = ["--max-sessions", "2", "--max-pending-cells", "3", "--max-body-mb", "1", "--max-log-mb", "1"]
    keys = {"CELLAR_EXECUTOR_API_KEYS": "alice:0123456789abcdef,bob:fedcba9876543210"}
    with ExecutorProcess(tmp_path_factory.mktemp("small"), *flags, env=keys) as running:
        yield running


@pytest.fixture
def alice(small: ExecutorProcess) -> Iterator[httpx.Client]:
    with connect(small, headers={"Authorization": "Bearer 0123456789abcdef"}) as client:
        yield client
        for session in client.get("/v1/sessions").json()["sessions"]:
            client.delete(f"/v1/sessions/{session['session_id']}")


ONE_CELL = b'{"code": "1", "cell_id": "a"}'
BAD_BODIES: dict[str, tuple[str, bytes, int, str]] = {
    "broken JSON": ("run", b'{"code": ', 400, "invalid_json"),
    "invalid UTF-8": ("run", b'{"code": "\xff\xfe"}', 400, "invalid_json"),
    "a lone surrogate": ("run", rb'{"code": "\ud800"}', 400, "invalid_json"),
    "deep nesting": ("run", b'{"code": ' + b"[" * 100_000, 400, "invalid_json"),
    "NaN": ("run", b'{"code": "1", "timeout_s": NaN}', 400, "invalid_json"),
    "Infinity": ("run", b'{"code": "1", "timeout_s": 1e999}', 422, "invalid_request"),
    "a negative timeout": ("run", b'{"code": "1", "timeout_s": -1}', 422, "invalid_request"),
    "a timeout of zero": ("run", b'{"code": "1", "timeout_s": 0}', 422, "invalid_request"),
    "a number as text": ("run", b'{"code": "1", "timeout_s": "3"}', 422, "invalid_request"),
    "a truth as number": ("run", b'{"code": "1", "timeout_s": true}', 422, "invalid_request"),
    "code that is no text": ("run", b'{"code": 1}', 422, "invalid_request"),
    "an unknown field": ("run", b'{"code": "1", "tiemout_s": 1}', 422, "invalid_request"),
    "not an object": ("run", b"[]", 422, "invalid_request"),
    "null": ("run", b"null", 422, "invalid_request"),
    "a NUL in an id": ("run", b'{"code": "1", "cell_id": "a\\u0000"}', 422, "invalid_request"),
    "a newline in an id": ("run", b'{"code": "1", "cell_id": "a\\n"}', 422, "invalid_request"),
    "an id without code": ("run", b'{"cell_id": "a"}', 422, "invalid_request"),
    "a timeout above the limit": ("run", b'{"code": "1", "timeout_s": 3600}', 422, "limit_too_high"),
    "neither code nor cells": ("cells", b"{}", 422, "invalid_request"),
    "code and cells": ("cells", b'{"code": "1", "cells": [{"code": "1"}]}', 422, "invalid_request"),
    "no cells": ("cells", b'{"cells": []}', 422, "invalid_request"),
    "an id twice": ("cells", b'{"cells": [%s, %s]}' % (ONE_CELL, ONE_CELL), 422, "invalid_request"),
}


@pytest.mark.parametrize("what", BAD_BODIES)
def test_a_bad_body_is_refused_and_nothing_is_lost(session: Session, what: str) -> None:
    session.run("x = 1")
    session.queue("x += 1")
    route, body, status, code = BAD_BODIES[what]
    assert_problem(session.http.post(f"{session.path}/{route}", content=body, headers=JSON), status, code)
    assert session.run("x")["result"] == "2"
    assert session.get()["cells_total"] == 3


def test_a_problem_names_the_field_and_does_not_echo_what_came(session: Session) -> None:
    reply = session.post("run", {"code": ["secret"], "timeout_s": "secret"})
    problem = assert_problem(reply, 422, "invalid_request")
    assert {error.field for error in problem.errors} == {"code", "timeout_s"}
    assert "secret" not in reply.text


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_a_body_that_is_not_said_to_be_json_is_refused(session: Session, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    reply = session.http.post(f"{session.path}/run", content=b'{"code": "1"}', headers=headers)
    assert assert_problem(reply, 422, "invalid_request").errors[0].field == "Content-Type"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"session_id": "a/b"}, 422, "invalid_request"),
        ({"session_id": ""}, 422, "invalid_request"),
        ({"session_id": "a" * 65}, 422, "invalid_request"),
        ({"session_id": "s-" + "0" * 32}, 422, "invalid_request"),
        ({"limits": {"memory_mb": 1_000_000}}, 422, "limit_too_high"),
        ({"limits": {"cell_timeout_s": 3600}}, 422, "limit_too_high"),
        ({"limits": {"memory_mb": True}}, 422, "invalid_request"),
        ({"limits": {"memory": 64}}, 422, "invalid_request"),
        ({"recovery": "hope"}, 422, "invalid_request"),
        ({"seed": -1}, 422, "invalid_request"),
        ({"idle_ttl_s": 0}, 422, "invalid_request"),
        ({"metadata": {"long": "x" * 20_000}}, 422, "invalid_request"),
        ({"runtime": "cobol"}, 422, "unknown_runtime"),
    ],
)
def test_a_session_that_cannot_be_is_refused(http: httpx.Client, body: Any, status: int, code: str) -> None:
    assert_problem(http.post("/v1/sessions", json=body), status, code)


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        ((), ["warm", "strict"]),
        (("--isolation", "strict"), ["strict"]),
        (("--insecure-no-isolation",), []),
    ],
)
def test_isolation_goes_upwards_only(start_executor: StartExecutor, flags: tuple[str, ...], allowed: list[str]) -> None:
    executor = start_executor(*flags)
    with connect(executor) as http:
        tier = http.get("/v1/info").json()["isolation"]["tier"]
        assert Session(http).get()["isolation"] == tier
        for isolation in ("warm", "strict"):
            created = http.post("/v1/sessions", json={"isolation": isolation})
            executed = http.post("/v1/execute", json={"code": "print(1)", "isolation": isolation})
            if isolation in allowed:
                assert (created.status_code, created.json()["isolation"]) == (201, isolation)
                assert executed.json()["stdout"] == "1\n"
            else:
                for reply in (created, executed):
                    assert_problem(reply, 422, "isolation_unavailable")


def test_infinity_in_metadata_is_refused(http: httpx.Client) -> None:
    reply = http.post("/v1/sessions", content=b'{"metadata": {"x": 1e999}}', headers=JSON)
    assert_problem(reply, 422, "invalid_request")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"code": "1", "files": {"f": "not base64!"}}, 422, "invalid_request"),
        ({"code": "1", "files": {"../f": "aGk="}}, 422, "invalid_request"),
        ({"code": "1", "files": {"/etc/f": "aGk="}}, 422, "invalid_request"),
        ({"code": "1", "runtime": "cobol"}, 422, "unknown_runtime"),
        ({"code": "1", "timeout_s": 3600}, 422, "limit_too_high"),
        ({"code": "1", "limits": {"cell_timeout_s": 1}, "timeout_s": 2}, 422, "limit_too_high"),
        ({}, 422, "invalid_request"),
    ],
)
def test_an_execution_that_cannot_be_is_refused(http: httpx.Client, body: Any, status: int, code: str) -> None:
    assert_problem(http.post("/v1/execute", json=body), status, code)


def test_what_is_not_there_is_not_found(session: Session) -> None:
    http, gone = session.http, "/v1/sessions/nobody"
    for reply in (
        http.get(gone),
        http.get(f"{gone}/cells"),
        http.get(f"{gone}/cells/c"),
        http.get(f"{gone}/runs/r"),
        http.delete(f"{gone}/cells/c"),
        http.post(f"{gone}/run", json={"code": "1"}),
        http.post(f"{gone}/cells", json={"code": "1"}),
        http.post(f"{gone}/reset"),
        http.post(f"{gone}/interrupt"),
        http.post(f"{gone}/fork"),
    ):
        assert_problem(reply, 404, "session_not_found")
    assert http.delete(gone).status_code == 204
    assert_problem(http.get(f"{session.path}/cells/c"), 404, "cell_not_found")
    assert_problem(http.delete(f"{session.path}/cells/c"), 404, "cell_not_found")
    assert_problem(http.get(f"{session.path}/runs/r"), 404, "run_not_found")
    for path in ("/v1/nothing", "/v2"):
        assert_problem(http.get(path), 404, "not_found")
    for put in ("/v1/sessions", "/v1/batch", f"{session.path}/fork"):
        assert_problem(http.put(put), 405, "method_not_allowed")
    for bad in ("a%00b", "a%0A", "%C3%A9", "a" * 65):
        assert_problem(http.get(f"/v1/sessions/{bad}"), 422, "invalid_request")
    assert_problem(http.get("/v1/sessions", params={"limit": 0}), 422, "invalid_request")


def test_a_cell_that_ran_cannot_be_withdrawn(session: Session) -> None:
    session.run("1", cell_id="ran")
    assert_problem(session.http.delete(f"{session.path}/cells/ran"), 409, "cell_not_pending")


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
def test_a_bad_idempotency_key_is_refused(session: Session, key: str) -> None:
    assert_problem(session.post("run", {"code": "1"}, **{"Idempotency-Key": key}), 422, "invalid_request")


# --- keys and room ------------------------------------------------------------------------------


def test_without_the_right_key_nothing_is_told(small: ExecutorProcess, alice: httpx.Client) -> None:
    with connect(small) as anybody:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic 0123456789abcdef"},
            {"Authorization": "Bearer"},
        ):
            reply = anybody.get("/v1/sessions", headers=headers)
            assert_problem(reply, 401, "unauthorized")
            assert reply.headers["WWW-Authenticate"] == "Bearer"
            assert_problem(anybody.post("/v1/execute", json={"code": "1"}, headers=headers), 401, "unauthorized")
        assert anybody.get("/healthz").json() == {"status": "ok", "isolation": "isolated"}
        assert anybody.get("/readyz").status_code == 200


def test_without_keys_only_local_names_are_served(http: httpx.Client) -> None:
    assert_problem(http.get("/v1/sessions", headers={"Host": "rebound.example"}), 401, "unauthorized")
    for host in ("localhost:1", "127.0.0.1", "[::1]:8080"):
        assert http.get("/v1/sessions", headers={"Host": host}).status_code == 200


def test_tenants_do_not_see_each_other(small: ExecutorProcess, alice: httpx.Client) -> None:
    session = Session(alice, session_id="shared-name")
    session.run("secret = 1")
    with connect(small, headers={"Authorization": "Bearer fedcba9876543210"}) as bob:
        assert_problem(bob.get(session.path), 404, "session_not_found")
        assert bob.get("/v1/sessions").json()["sessions"] == []
        assert bob.delete(session.path).status_code == 204
        own = Session(bob, session_id="shared-name")
        assert own.run("'secret' in globals()")["result"] == "False"
        bob.delete(own.path)
    assert session.run("secret")["result"] == "1"


def test_no_more_sessions_than_there_is_room_for(alice: httpx.Client) -> None:
    first = Session(alice)
    Session(alice)
    reply = alice.post("/v1/sessions")
    assert_problem(reply, 429, "too_many_sessions")
    assert int(reply.headers["Retry-After"]) >= 1
    assert_problem(alice.post("/v1/execute", json={"code": "1"}), 429, "too_many_sessions")
    alice.delete(first.path)
    assert alice.post("/v1/execute", json={"code": "1"}).status_code == 200
    Session(alice)


def test_no_more_pending_cells_than_there_is_room_for(alice: httpx.Client) -> None:
    session = Session(alice)
    assert_problem(session.post("cells", {"cells": [{"code": "1"}] * 4}), 429, "too_many_cells")
    assert session.get()["cells_total"] == 0
    for _ in range(3):
        session.queue("1")
    assert_problem(session.post("cells", {"code": "1"}), 429, "too_many_cells")
    assert_problem(session.post("run", {"code": "1"}), 429, "too_many_cells")
    assert len(session.run()["cells"]) == 3
    session.queue("1")


def test_a_session_keeps_no_more_output_than_there_is_room_for(alice: httpx.Client) -> None:
    session = Session(alice)
    for _ in range(40):
        reply = session.post("run", {"code": "print('x' * 60_000)"})
        if reply.status_code == 429:
            break
    assert_problem(reply, 429, "too_many_cells")
    assert session.get()["cells_total"] < 40


def test_a_body_too_large_is_refused_before_it_is_read(small: ExecutorProcess, alice: httpx.Client) -> None:
    session = Session(alice)
    body = json.dumps({"code": "#" * 2_000_000}).encode()
    assert_problem(alice.post(f"{session.path}/run", content=body, headers=JSON), 413, "body_too_large")
    chunks = (body[i : i + 65_536] for i in range(0, len(body), 65_536))
    assert_problem(alice.post(f"{session.path}/run", content=chunks, headers=JSON), 413, "body_too_large")
    assert session.run("1")["result"] == "1"
    with socket.create_connection((urlsplit(small.url).hostname, urlsplit(small.url).port)) as raw:
        raw.sendall(
            b"POST /v1/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 0123456789abcdef\r\n"
            b"Content-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_an_unfinished_body_holds_up_nobody(small: ExecutorProcess, alice: httpx.Client) -> None:
    with socket.create_connection((urlsplit(small.url).hostname, urlsplit(small.url).port)) as raw:
        raw.sendall(
            b"POST /v1/execute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 0123456789abcdef\r\n"
            b'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"code": '
        )
        time.sleep(0.1)
        assert alice.post("/v1/execute", json={"code": "1"}).json()["result"] == "1"
    assert alice.post("/v1/execute", json={"code": "1"}).json()["result"] == "1"

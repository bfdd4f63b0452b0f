"""Forks and atomic runs on a real server."""

import contextlib
import threading
import time
from typing import Any

import httpx
import pytest

from tests.integration.conftest import StartExecutor
from tests.integration.executor.conftest import Session, connect


def at(session: Session, session_id: str) -> Session:
    """Another session on the same server, by its id."""
    other = Session.__new__(Session)
    other.http, other.id, other.path = session.http, session_id, f"/v1/sessions/{session_id}"
    return other


def fork(session: Session, body: dict[str, Any] | None = None, key: str | None = None) -> list[Session]:
    reply = session.post("fork", body or {}, **({} if key is None else {"Idempotency-Key": key}))
    assert reply.status_code == 201, reply.text
    return [at(session, made["session_id"]) for made in reply.json()["sessions"]]


@pytest.fixture
def origin(http: httpx.Client) -> Any:
    """Deletes the copies as well."""
    before = {one["session_id"] for one in http.get("/v1/sessions?limit=1000").json()["sessions"]}
    yield Session(http, metadata={"task": 1})
    for one in http.get("/v1/sessions?limit=1000").json()["sessions"]:
        if one["session_id"] not in before:
            http.delete(f"/v1/sessions/{one['session_id']}")


def test_copies_have_state_files_and_what_is_pending_and_go_their_own_way(origin: Session) -> None:
    origin.http.put(f"{origin.path}/files/f", content=b"put")
    origin.run("x = [open('f').read()]; open('made', 'w').write('1')")
    origin.queue("x.append('pending')")
    a, b = fork(origin, {"session_ids": ["copy-a", "copy-b"]})
    assert (a.id, a.get()["metadata"], a.get()["generation"]) == ("copy-a", {"task": 1}, 1)
    assert a.run("x.append('a'); open('f', 'w').write('a'); x")["result"] == "['put', 'pending', 'a']"
    for other in (b, origin):
        assert other.run("x, open('f').read(), open('made').read()")["result"] == "(['put', 'pending'], 'put', '1')"
    assert [cell["status"] for cell in a.get("cells")["cells"]] == ["ok", "ok", "ok"]


def test_a_fork_is_answered_once(origin: Session) -> None:
    first, second = (fork(origin, {"count": 2}, f"fork-{origin.id}") for _ in range(2))
    assert [copy.id for copy in first] == [copy.id for copy in second]


def test_a_copy_has_an_id_of_its_own(origin: Session) -> None:
    fork(origin, {"session_ids": ["copy-once"]})
    reply = origin.post("fork", {"session_ids": ["copy-new", "copy-once"]})
    assert (reply.status_code, reply.json()["code"]) == (409, "session_exists")
    assert origin.http.get("/v1/sessions/copy-new").status_code == 404


def test_a_shared_copy_has_the_live_state_and_shares_files(origin: Session) -> None:
    """State that no replay gives: a generator half-way through."""
    origin.run("numbers = iter(range(10)); next(numbers)")
    [copy] = fork(origin, {"trust": "shared"})
    assert copy.run("next(numbers); open('f', 'w').write('1')")["status"] == "ok"
    assert origin.run("next(numbers), open('f').read()")["result"] == "(1, '1')"
    origin.http.delete(origin.path)
    assert copy.run("next(numbers)")["result"] == "2"


@pytest.mark.parametrize(
    "body", [{"count": 0}, {"count": 257}, {"count": 2, "session_ids": ["a"]}, {"session_ids": ["a", "a"]}, {"n": 1}]
)
def test_a_malformed_fork_is_refused(session: Session, body: dict[str, Any]) -> None:
    assert session.post("fork", body).json()["code"] == "invalid_request"


def test_what_was_stopped_half_way_is_not_repeatable(session: Session) -> None:
    session.run("x = 1\nimport time; time.sleep(60)", timeout_s=0.5)
    for what, body in (("fork", {}), ("run", {"code": "x = 2", "atomic": True})):
        reply = session.post(what, body)
        assert (reply.status_code, reply.json()["code"]) == (409, "not_repeatable")
    assert session.run("x")["result"] == "1"


def test_a_fork_needs_room(start_executor: StartExecutor) -> None:
    executor = start_executor("--max-sessions", "3")
    with connect(executor) as http:
        session = Session(http)
        reply = session.post("fork", {"count": 3})
        assert (reply.status_code, reply.json()["code"], reply.headers["Retry-After"]) == (
            429,
            "too_many_sessions",
            "1",
        )
        assert len(http.get("/v1/sessions").json()["sessions"]) == 1
        assert len(fork(session, {"count": 2})) == 2


def test_copies_survive_their_origin_and_a_crash(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http, recovery="replay")
        session.run("x = 1")
        [copy] = fork(session, key="fork")
        copy.run("x += 1")
        http.delete(session.path)
        executor.kill()
        executor.start()
        http.base_url = httpx.URL(executor.url)
        assert copy.run("x")["result"] == "2"
        again = session.post("fork", {}, **{"Idempotency-Key": "fork"})
        assert again.json()["sessions"][0]["session_id"] == copy.id


@pytest.mark.parametrize("recovery", ["fail", "replay"])
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("1 / 0", "error"),
        ("import time; time.sleep(60)", "timeout"),
        ("import os; os._exit(1)", "killed"),
    ],
)
def test_a_failed_atomic_run_leaves_the_session_as_it_was(
    http: httpx.Client, recovery: str, code: str, status: str
) -> None:
    session = Session(http, recovery=recovery)
    session.http.put(f"{session.path}/files/f", content=b"1")
    session.run("x = 1")
    session.queue("x = 2; open('f', 'w').write('2'); open('g', 'w'); print('seen')")
    run = session.run(code, atomic=True, timeout_s=1)
    assert (run["status"], run["rolled_back"], run["stdout"], run["generation"]) == (status, True, "seen\n", 1)
    assert session.get(f"runs/{run['run_id']}") == run
    assert session.get()["generation"] == 2
    after = session.run("import os; x, open('f').read(), os.listdir()")
    assert (after["result"], after["recovered"]) == ("(1, '1', ['f'])", False)
    assert [cell["status"] for cell in session.get("cells")["cells"]] == ["ok", "ok", status, "ok"]
    http.delete(session.path)


def test_an_atomic_run_that_goes_well_stays(session: Session) -> None:
    run = session.run("x = 1", atomic=True)
    assert (run["status"], run["rolled_back"], run["generation"]) == ("ok", False, 1)
    assert session.run("x")["result"] == "1"


def test_an_atomic_run_that_a_crash_cut_short_leaves_nothing(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http, recovery="replay")
        session.run("x = [1]")
        session.queue("x.append(2)")
        body = {"code": "import time; time.sleep(60)", "atomic": True}
        key = {"Idempotency-Key": "atomic"}

        def post() -> None:
            with connect(executor) as other, contextlib.suppress(httpx.HTTPError):
                other.post(f"{session.path}/run", json=body, headers=key)

        thread = threading.Thread(target=post)
        thread.start()
        session.wait_until_running()
        while session.get("cells")["cells"][1]["status"] != "ok":
            time.sleep(0.02)
        executor.kill()
        thread.join()
        executor.start()
        http.base_url = httpx.URL(executor.url)
        retried = session.post("run", body, **key).json()
        assert (retried["status"], retried["rolled_back"]) == ("lost", True)
        assert session.run("x")["result"] == "[1]"

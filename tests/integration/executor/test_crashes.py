"""What is promised when kernels and servers die: state is there, or its loss is said; nothing runs twice."""

import contextlib
import threading
import time
from typing import Any

import httpx
import pytest

from tests.executor_process import ExecutorProcess
from tests.integration.conftest import StartExecutor
from tests.integration.executor.conftest import Session, connect


def crash(executor: ExecutorProcess, session: Session) -> None:
    """SIGKILL the server and start another one on its data."""
    executor.kill()
    executor.start()
    session.http.base_url = httpx.URL(executor.url)


def run_in_background(session: Session, body: dict[str, Any], **headers: str) -> threading.Thread:
    """A run whose answer may never come."""

    def post() -> None:
        with httpx.Client(base_url=session.http.base_url, timeout=60) as http, contextlib.suppress(httpx.HTTPError):
            http.post(f"{session.path}/run", json=body, headers=headers)

    thread = threading.Thread(target=post)
    thread.start()
    session.wait_until_running()
    return thread


def assert_lost(session: Session) -> None:
    assert session.get()["status"] == "lost"
    assert "cells" in session.get("cells")
    for what, body in (("cells", {"code": "1"}), ("run", {"code": "1"}), ("run", None), ("interrupt", None)):
        reply = session.post(what, body)
        assert (reply.status_code, reply.json()["code"]) == (410, "session_lost")


DEATHS = {
    "os._exit": "import os; os._exit(0)",
    "SIGSEGV": "import ctypes; ctypes.string_at(0)",
    "SIGINT ignored": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
}


@pytest.mark.parametrize("how", DEATHS)
def test_a_session_whose_kernel_died_is_lost_until_it_is_reset(http: httpx.Client, how: str) -> None:
    session = Session(http)
    session.run("x = 1")
    session.queue(DEATHS[how])
    run = session.run("print('after')", timeout_s=2)
    assert run["status"] in ("killed", "timeout")
    assert run["cells"][1]["status"] == "skipped"
    assert_lost(session)
    assert session.post("reset").json()["generation"] == 2
    again = session.run("'x' in globals()")
    assert (again["result"], again["generation"], again["recovered"]) == ("False", 2, False)
    http.delete(session.path)


def test_a_replay_session_is_rebuilt_after_its_kernel_died(http: httpx.Client) -> None:
    session = Session(http, recovery="replay")
    session.run("x = 1")
    session.run("x += 1; 1 / 0")
    assert session.run("import os; os._exit(1)")["status"] == "killed"
    assert session.get()["status"] == "ready"
    session.queue("x += 40")
    run = session.run("x")
    assert (run["result"], run["generation"], run["recovered"]) == ("42", 2, True)
    assert len(run["cells"]) == 2
    again = session.run("x")
    assert (again["result"], again["generation"], again["recovered"]) == ("42", 2, False)
    assert session.get()["generation"] == 2
    http.delete(session.path)


def assert_lost_and_not_rebuilt(session: Session) -> None:
    assert session.run("import os; os._exit(1)")["status"] == "killed"
    assert_lost(session)
    assert session.post("reset").status_code == 200
    session.run("x = 7")
    session.run("import os; os._exit(1)")
    assert session.run("x")["result"] == "7"


def test_state_left_by_a_cell_that_timed_out_softly_is_not_replayed(http: httpx.Client) -> None:
    session = Session(http, recovery="replay")
    session.run("x = 1")
    half = session.run("x = 2\nimport time; time.sleep(60)", timeout_s=0.5)
    assert half["status"] == "timeout"
    assert session.run("x")["result"] == "2"
    assert_lost_and_not_rebuilt(session)
    http.delete(session.path)


@pytest.mark.parametrize(
    "code",
    [
        "x = 2\nimport time; time.sleep(60)",
        "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: x = 2",
    ],
)
def test_state_left_by_an_interrupted_cell_is_not_replayed(http: httpx.Client, code: str) -> None:
    session = Session(http, recovery="replay")
    thread = run_in_background(session, {"code": code})
    time.sleep(0.3)
    session.post("interrupt")
    thread.join()
    assert session.run("x")["result"] == "2"
    assert_lost_and_not_rebuilt(session)
    http.delete(session.path)


def test_half_done_state_is_not_replayed_after_a_server_crash(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http, recovery="replay")
        session.run("x = 2\nimport time; time.sleep(60)", timeout_s=0.5)
        crash(executor, session)
        assert_lost(session)


def test_a_cell_that_took_its_kernel_along_is_left_out_of_a_replay(http: httpx.Client) -> None:
    session = Session(http, recovery="replay")
    session.run("x = 1")
    assert session.run(f"x = 2; {DEATHS['SIGINT ignored']}", timeout_s=0.5)["status"] == "timeout"
    run = session.run("x")
    assert (run["result"], run["recovered"]) == ("1", True)
    http.delete(session.path)


def test_cells_before_a_reset_are_not_replayed(http: httpx.Client) -> None:
    session = Session(http, recovery="replay")
    session.run("old = 1")
    session.post("reset")
    session.run("new = 1")
    session.run("import os; os._exit(1)")
    run = session.run("'old' in globals(), 'new' in globals()")
    assert (run["result"], run["generation"]) == ("(False, True)", 3)
    http.delete(session.path)


def test_a_session_whose_replay_dies_is_lost(http: httpx.Client) -> None:
    session = Session(http, recovery="replay")
    # Harmless now, deadly when it runs again.
    session.run(f"import os, time\nif time.time() > {time.time() + 1}: os._exit(1)")
    time.sleep(1)
    session.run("os._exit(1)")
    assert session.post("run", {"code": "1"}).json()["code"] == "session_lost"
    assert_lost(session)
    assert session.post("reset").status_code == 200
    assert session.run("1")["result"] == "1"
    http.delete(session.path)


def test_after_a_server_crash_a_session_is_lost_even_if_nothing_ran(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        fresh, used = Session(http), Session(http)
        used.run("x = 1")
        used.queue("y = 2")
        crash(executor, fresh)
        for session in (fresh, used):
            assert_lost(session)
        cells = used.get("cells")["cells"]
        assert [cell["status"] for cell in cells] == ["ok", "pending"]
        assert used.get()["cells_pending"] == 1
        assert used.post("reset").json()["generation"] == 2
        assert used.run("y, 'x' in globals()")["result"] == "(2, False)"
        assert http.delete(fresh.path).status_code == 204
        assert http.get(fresh.path).status_code == 404


def test_after_a_server_crash_a_replay_session_goes_on(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        fresh, used = Session(http, recovery="replay"), Session(http, recovery="replay")
        used.run("x = 41")
        used.queue("x += 1")
        crash(executor, used)
        assert used.get()["status"] == "ready"
        run = used.run("x")
        assert (run["result"], run["generation"], run["recovered"]) == ("42", 2, True)
        assert len(run["cells"]) == 2
        empty = fresh.run("1")
        assert (empty["generation"], empty["recovered"]) == (2, True)


def test_a_cell_started_before_a_crash_is_lost_and_never_run_again(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http, recovery="replay")
        session.run("ran = []")
        session.queue("ran.append('a'); import time; time.sleep(60)", cell_id="stuck")
        session.queue("ran.append('b')", cell_id="waiting")
        thread = run_in_background(session, {})
        crash(executor, session)
        thread.join()
        assert [cell["status"] for cell in session.get("cells")["cells"]] == ["ok", "lost", "pending"]
        run = session.run("ran")
        assert (run["result"], run["recovered"]) == ("['b']", True)
        assert session.get("cells/stuck")["status"] == "lost"


def test_retries_after_a_crash_find_what_the_first_try_did(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http, recovery="replay")
        session.run("ran = []")
        quick, slow = {"code": "ran.append(0)"}, {"code": "ran.append(1); import time; time.sleep(60)"}
        finished = session.post("run", quick, **{"Idempotency-Key": "finished"}).json()
        thread = run_in_background(session, slow, **{"Idempotency-Key": "started"})
        crash(executor, session)
        thread.join()
        again = session.post("run", quick, **{"Idempotency-Key": "finished"})
        assert (again.json(), again.headers["Idempotency-Replayed"]) == (finished, "true")
        lost = session.post("run", slow, **{"Idempotency-Key": "started"}).json()
        assert (lost["status"], [cell["status"] for cell in lost["cells"]]) == ("lost", ["lost"])
        assert session.run("ran")["result"] == "[0]"


def test_retries_are_answered_after_their_session_was_lost(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http)
        key, deadly = {"Idempotency-Key": "deadly"}, {"code": "import os; os._exit(0)", "cell_id": "deadly"}
        kept = {"code": "print(1)", "cell_id": "kept"}
        lived = session.post("run", kept).json()
        first = session.post("run", deadly, **key).json()
        assert first["status"] == "killed"
        for _ in range(2):
            assert session.post("run", deadly, **key).json() == first
            assert session.post("run", deadly).json() == first
            assert session.post("run", kept).json() == lived
            assert session.post("run", {"code": "1"}).json()["code"] == "session_lost"
            crash(executor, session)


def test_a_create_that_is_tried_again_after_a_crash_finds_its_session(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        key = {"Idempotency-Key": "create"}
        first = http.post("/v1/sessions", json={"recovery": "replay"}, headers=key).json()
        executor.kill()
        executor.start()
        http.base_url = httpx.URL(executor.url)
        again = http.post("/v1/sessions", json={"recovery": "replay"}, headers=key).json()
        assert again == first
        assert len(http.get("/v1/sessions").json()["sessions"]) == 1


def test_an_execution_that_a_crash_cut_short_is_lost_not_run_again(start_executor: StartExecutor) -> None:
    executor = start_executor()
    body = {"code": "import time; time.sleep(60)"}
    key = {"Idempotency-Key": "execute"}

    def post() -> None:
        with connect(executor) as http, contextlib.suppress(httpx.HTTPError):
            http.post("/v1/execute", json=body, headers=key)

    thread = threading.Thread(target=post)
    thread.start()
    time.sleep(1)
    executor.kill()
    thread.join()
    executor.start()
    with connect(executor) as http:
        run = http.post("/v1/execute", json=body, headers=key).json()
        assert (run["status"], run["cells"][0]["status"]) == ("lost", "lost")

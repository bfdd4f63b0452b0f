"""What a session does with cells, seen over HTTP: order, outcomes, limits, turns."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.executor_process import ExecutorProcess
from tests.integration.executor.conftest import Session, connect, wait_until


def test_deferred_cells_stay_pending_until_a_run_and_then_run_in_order(session: Session) -> None:
    session.queue("x = 6")
    session.queue("y = x * 7")
    assert [cell["status"] for cell in session.get("cells")["cells"]] == ["pending", "pending"]
    assert session.get()["cells_pending"] == 2
    run = session.run("print(y)")
    assert run["status"] == "ok"
    assert [cell["status"] for cell in run["cells"]] == ["ok", "ok", "ok"]
    assert run["stdout"] == "42\n"
    assert session.get()["cells_pending"] == 0
    assert [cell["index"] for cell in session.get("cells")["cells"]] == [0, 1, 2]


def test_many_cells_are_queued_at_once(session: Session) -> None:
    reply = session.post("cells", {"cells": [{"code": f"v{i} = {i}", "cell_id": f"n{i}"} for i in range(5)]})
    assert [cell["cell_id"] for cell in reply.json()["cells"]] == [f"n{i}" for i in range(5)]
    assert session.run("v0 + v4")["result"] == "4"


def test_a_run_with_nothing_pending_is_ok_with_no_cells(session: Session) -> None:
    run = session.run()
    assert (run["status"], run["cells"], run["result"]) == ("ok", [], None)


def test_a_run_needs_no_body(session: Session) -> None:
    session.queue("1 + 1")
    assert session.http.post(f"{session.path}/run").json()["result"] == "2"


def test_an_error_keeps_stdout_and_skips_the_rest(session: Session) -> None:
    session.queue("print('before'); 1 / 0")
    session.queue("never = 1")
    run = session.run()
    assert run["status"] == "error"
    assert run["stdout"] == "before\n"
    assert run["error"]["type"] == "ZeroDivisionError"
    assert [cell["status"] for cell in run["cells"]] == ["error", "skipped"]
    assert run["result"] is None
    assert session.run("'never' in globals()")["result"] == "False"


def test_on_error_continue_runs_the_rest(session: Session) -> None:
    session.queue("1 / 0")
    run = session.run("print('after')", on_error="continue")
    assert [cell["status"] for cell in run["cells"]] == ["error", "ok"]
    assert (run["status"], run["stdout"]) == ("error", "after\n")
    assert run["error"]["type"] == "ZeroDivisionError"


def test_a_cell_past_its_deadline_times_out_and_the_variables_stay(session: Session) -> None:
    session.run("kept = 5")
    run = session.run("while True: pass", timeout_s=1)
    assert run["status"] == "timeout"
    assert session.run("kept")["result"] == "5"


def test_output_past_the_limit_is_cut_visibly(session: Session) -> None:
    run = session.run("print('a' * 1_000_000)")
    assert run["truncated"]
    assert run["cells"][0]["truncated"]
    assert len(run["stdout"]) < 100_000
    assert set(run["stdout"]) > {"a"}


def test_text_that_is_no_unicode_reaches_the_client(session: Session) -> None:
    run = session.run("print(chr(0xd800)); raise ValueError(chr(0xdfff))")
    assert run["status"] == "error"
    assert session.get("cells")["cells"][0]["status"] == "error"


def test_a_withdrawn_cell_never_runs(session: Session) -> None:
    cell_id = session.queue("x = 1")["cells"][0]["cell_id"]
    path = f"{session.path}/cells/{cell_id}"
    assert session.http.delete(path).json()["status"] == "withdrawn"
    assert session.http.delete(path).status_code == 200
    assert session.run("'x' in globals()")["result"] == "False"
    assert session.get(f"cells/{cell_id}")["status"] == "withdrawn"


def test_concurrent_runs_wait_their_turn_in_order_of_acceptance(session: Session) -> None:
    session.run("import time; seen = []")

    def one(n: int) -> Any:
        time.sleep(0.05 * n)
        return session.run(f"time.sleep(0.2); seen.append({n}); print({n})")

    with ThreadPoolExecutor(6) as pool:
        runs = list(pool.map(one, range(6)))
    assert [run["stdout"] for run in runs] == [f"{n}\n" for n in range(6)]
    assert all(len(run["cells"]) == 1 for run in runs)
    assert session.run("seen")["result"] == "[0, 1, 2, 3, 4, 5]"
    assert runs[5]["queue_s"] > runs[0]["queue_s"]


def test_what_waits_for_its_turn_is_accepted_already(session: Session) -> None:
    with ThreadPoolExecutor(3) as pool:
        slow = pool.submit(session.run, "import time; time.sleep(2)")
        session.wait_until_running()
        waiting = [pool.submit(session.run, f"print({n})") for n in range(2)]
        wait_until(lambda: session.get()["cells_pending"] == 2)
        assert not slow.done()
        assert [run.result()["stdout"] for run in waiting] == ["0\n", "1\n"]


def test_a_run_takes_only_what_was_there_when_it_came(session: Session) -> None:
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(session.run, "import time; time.sleep(1)")
        session.wait_until_running()
        session.queue("print('mine')")
        second = pool.submit(session.run)
        time.sleep(0.2)
        session.queue("print('later')")
        assert (len(slow.result()["cells"]), second.result()["stdout"]) == (1, "mine\n")
    assert session.get()["cells_pending"] == 1


def test_a_burst_of_runs_gives_each_its_own_cell_in_the_order_of_the_log(session: Session) -> None:
    session.run("seen = []")
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda n: session.run(f"seen.append({n}); print({n})"), range(40)))
    assert [run["stdout"] for run in runs] == [f"{n}\n" for n in range(40)]
    log = [cell["stdout"].strip() for cell in session.get("cells")["cells"][1:]]
    assert session.run("seen")["result"] == f"[{', '.join(log)}]"


def test_other_sessions_do_not_wait(http: httpx.Client, session: Session) -> None:
    other = Session(http)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(session.run, "import time; time.sleep(2)")
        assert other.run("1 + 1")["queue_s"] < 1
        assert not slow.done()
        assert session.get()["status"] == "running"
    http.delete(other.path)


def test_interrupt_ends_the_running_cell(session: Session) -> None:
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(session.run, "import time\nkept = 1\ntime.sleep(60)")
        session.wait_until_running()
        time.sleep(0.3)
        assert session.post("interrupt").status_code == 202
        assert run.result()["error"]["type"] == "KeyboardInterrupt"
    assert session.run("kept")["result"] == "1"


def test_reset_gives_a_fresh_namespace_and_files_and_keeps_what_is_pending(session: Session) -> None:
    session.run("x = 1; open('f', 'w').write('f')")
    session.queue("print('pending')")
    assert session.post("reset").json()["generation"] == 2
    run = session.run("import os; print('x' in globals(), os.path.exists('f'))")
    assert run["stdout"] == "pending\nFalse False\n"
    assert run["generation"] == 2


def test_a_run_is_found_again_by_its_id(session: Session) -> None:
    session.queue("print(1)")
    run = session.run("print(2); 1 / 0")
    assert session.get(f"runs/{run['run_id']}") == run


def test_a_client_with_a_key_that_hangs_up_does_not_lose_the_outcome(
    executor: ExecutorProcess, session: Session
) -> None:
    with connect(executor) as impatient:
        try:
            code = "import time; time.sleep(1); print('done')"
            headers = {"Idempotency-Key": f"{session.id}-impatient"}
            impatient.post(f"{session.path}/run", json={"code": code}, headers=headers, timeout=0.3)
            raise AssertionError("the run was to take longer")
        except httpx.ReadTimeout:
            pass
    assert session.run("1")["status"] == "ok"
    assert session.get("cells")["cells"][0]["stdout"] == "done\n"


def test_delete_during_a_run_ends_it(http: httpx.Client) -> None:
    session = Session(http)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(session.run, "import time; time.sleep(60)")
        session.wait_until_running()
        time.sleep(0.2)
        assert http.delete(session.path).status_code == 204
        assert run.result()["status"] == "killed"
    assert http.get(session.path).status_code == 404


def test_execute_has_stdin_files_and_a_seed_and_leaves_nothing(http: httpx.Client) -> None:
    body = {
        "code": "import random; print(input(), open('d/f.txt').read(), random.random())",
        "stdin": "hello\n",
        "files": {"d/f.txt": "aGk="},
        "seed": 7,
    }
    first, second = (http.post("/v1/execute", json=body).json() for _ in range(2))
    assert first["status"] == "ok"
    assert first["stdout"].startswith("hello hi 0.")
    assert first["stdout"] == second["stdout"]
    assert http.get(f"/v1/sessions/{first['session_id']}").status_code == 404


def test_sessions_are_listed_in_pages(http: httpx.Client) -> None:
    made = {Session(http, session_id=f"page-{i}").id for i in range(5)}
    seen: list[str] = []
    cursor = None
    while True:
        page = http.get("/v1/sessions", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [one["session_id"] for one in page["sessions"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert made <= set(seen)
    assert len(seen) == len(set(seen))
    for session_id in made:
        http.delete(f"/v1/sessions/{session_id}")


def test_a_deleted_id_is_never_used_again(http: httpx.Client) -> None:
    Session(http, session_id="once-only")
    for _ in range(2):
        assert http.delete("/v1/sessions/once-only").status_code == 204
    reply = http.post("/v1/sessions", json={"session_id": "once-only"})
    assert (reply.status_code, reply.json()["code"]) == (409, "session_exists")


def test_a_seeded_session_can_be_repeated(http: httpx.Client) -> None:
    draws = []
    for _ in range(2):
        session = Session(http, seed=42)
        draws.append(session.run("import random, numpy; random.random(), float(numpy.random.rand())")["result"])
        http.delete(session.path)
    assert draws[0] == draws[1]

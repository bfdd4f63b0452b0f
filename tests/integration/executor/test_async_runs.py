"""`Prefer: respond-async`: what was acknowledged is done, once, in its order, also by the server that comes next."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.integration.conftest import StartExecutor
from tests.integration.executor.conftest import Session, connect, wait_until

LATER = {"Prefer": "respond-async"}


def enqueue(session: Session, code: str | None = None, *, key: str | None = None, **more: Any) -> str:
    headers = LATER | ({} if key is None else {"Idempotency-Key": key})
    reply = session.post("run", {**({} if code is None else {"code": code}), **more}, **headers)
    assert reply.status_code == 202, reply.text
    run_id: str = reply.json()["run_id"]
    assert reply.headers["Location"] == f"{session.path}/runs/{run_id}"
    assert reply.headers["Preference-Applied"] == "respond-async"
    return run_id


def ask(session: Session, run_id: str, wait_s: float = 0) -> httpx.Response:
    return session.http.get(f"{session.path}/runs/{run_id}", params={"wait_s": wait_s})


def done(session: Session, run_id: str) -> Any:
    reply = ask(session, run_id, 30)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_run_is_answered_later_and_a_long_poll_wakes_when_it_ends(session: Session) -> None:
    run_id = enqueue(session, "import time; time.sleep(0.7); print('done')")
    assert ask(session, run_id).status_code == 202
    assert ask(session, run_id, 0.1).status_code == 202
    asked = time.monotonic()
    run = done(session, run_id)
    assert time.monotonic() - asked < 20
    assert (run["run_id"], run["status"], run["stdout"]) == (run_id, "ok", "done\n")
    assert done(session, run_id) == run


def test_runs_keep_their_order_of_acceptance_whoever_waits(session: Session) -> None:
    session.run("said = []")
    first = enqueue(session, "import time; time.sleep(0.3); said.append(1)")
    second = enqueue(session, "said.append(2)")
    third = session.run("said.append(3); said")
    assert third["result"] == "[1, 2, 3]"
    assert [done(session, run)["status"] for run in (first, second)] == ["ok", "ok"]


def test_what_comes_in_the_answer_of_a_whole_run_comes_later_too(session: Session) -> None:
    session.queue("1 / 0")
    run = done(session, enqueue(session, "print('still')", on_error="continue"))
    assert [cell["status"] for cell in run["cells"]] == ["error", "ok"]
    nothing = done(session, enqueue(session))
    assert (nothing["status"], nothing["cells"]) == ("ok", [])


def test_a_retry_with_the_key_finds_the_same_run_whichever_answer_it_wants(session: Session) -> None:
    session.run("runs = 0")
    code, key = "import time; time.sleep(0.3); runs += 1; runs", f"{session.id}-k"
    run_id = enqueue(session, code, key=key)
    assert enqueue(session, code, key=key) == run_id
    whole = session.post("run", {"code": code}, **{"Idempotency-Key": key})
    assert (whole.status_code, whole.json()["run_id"], whole.json()["result"]) == (200, run_id, "1")
    assert enqueue(session, code, key=key) == run_id
    assert session.run("runs")["result"] == "1"


def test_a_refusal_before_acceptance_is_a_refusal_and_nothing_is_queued(session: Session) -> None:
    refused = session.post("run", {"code": "1", "timeout_s": 80_000}, **LATER)
    assert (refused.status_code, refused.json()["code"]) == (422, "limit_too_high")
    both = session.http.post(f"{session.path}/run", params={"stream": "true"}, json={}, headers=LATER)
    assert (both.status_code, both.json()["code"]) == (422, "invalid_request")
    assert ask(session, "r-unknown").json()["code"] == "run_not_found"
    assert session.http.get(f"{session.path}/runs/r-1", params={"wait_s": 61}).status_code == 422
    assert session.get("cells")["cells"] == []


def test_a_queued_run_whose_cell_was_withdrawn_says_so(session: Session) -> None:
    session.run("import time")
    blocker = enqueue(session, "time.sleep(0.5)")
    run_id = enqueue(session, "1", cell_id="mine")
    assert session.http.delete(f"{session.path}/cells/mine").status_code == 200
    assert (ask(session, run_id, 30).status_code, ask(session, run_id, 30).json()["code"]) == (409, "cell_not_pending")
    assert done(session, blocker)["status"] == "ok"


def test_a_queued_run_survives_the_death_of_its_server_and_is_done_once(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http, recovery="replay")
        session.run("said = []\nimport time")
        session.http.put(f"{session.path}/files/ran", content=b"")
        blocker = enqueue(session, "time.sleep(60)", key="blocker")
        session.wait_until_running()
        mine = enqueue(session, "said.append('mine')", key="mine")
        last = enqueue(session, "said.append('last'); said", atomic=True)
        executor.kill()
    executor.start()
    with connect(executor) as http:
        session.http = http
        assert done(session, last)["result"] == "['mine', 'last']"  # though it was asked for first
        assert done(session, mine)["run_id"] == mine
        assert enqueue(session, "said.append('mine')", key="mine") == mine
        assert done(session, blocker)["status"] == "lost"
        assert session.run("said")["result"] == "['mine', 'last']"


def test_whoever_comes_next_finds_queued_runs_before_it(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http, recovery="replay")
        session.run("said = []\nimport time")
        enqueue(session, "time.sleep(60)")
        session.wait_until_running()
        mine = enqueue(session, "said.append('mine')")
        executor.kill()
    executor.start()
    with connect(executor) as http:
        session.http = http
        following = session.run("said.append('next'); said")
        assert (following["result"], len(following["cells"])) == ("['mine', 'next']", 1)
        assert (done(session, mine)["run_id"], done(session, mine)["status"]) == (mine, "ok")


def test_a_queued_run_of_a_session_that_is_lost_says_so(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http)
        finished = enqueue(session, "import time")
        assert done(session, finished)["status"] == "ok"
        enqueue(session, "time.sleep(60)")
        session.wait_until_running()
        queued = enqueue(session, "1")
        executor.kill()
    executor.start()
    with connect(executor) as http:
        session.http = http
        wait_until(lambda: ask(session, queued).status_code == 410)
        assert ask(session, queued, 5).json()["code"] == "session_lost"
        assert done(session, finished)["status"] == "ok"


def test_an_orderly_stop_keeps_what_is_queued_for_the_next_server(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http, recovery="replay")
        session.run("import time")
        first = enqueue(session, "time.sleep(1.5); 'first'")
        session.wait_until_running()
        second = enqueue(session, "'second'")
        executor.process.terminate()
        wait_until(lambda: session.post("run", {"code": "1"}, **LATER).status_code == 503)
        executor.process.wait(30)
    executor.start()
    with connect(executor) as http:
        session.http = http
        assert (done(session, first)["result"], done(session, second)["result"]) == ("'first'", "'second'")


def test_many_wait_for_one_run(session: Session) -> None:
    run_id = enqueue(session, "import time; time.sleep(0.5); 7")
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: done(session, run_id), range(8)))
    assert all(run["result"] == "7" for run in runs)

"""At most once: idempotency keys and cell ids of the client."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.integration.executor.conftest import Session

COUNT = "count = globals().get('count', 0) + 1; print(count)"


def keyed(session: Session, what: str, body: Any, key: str) -> httpx.Response:
    return session.post(what, body, **{"Idempotency-Key": f"{key}-{session.id}"})


def test_the_second_request_with_a_key_gets_the_first_answer(session: Session) -> None:
    first, second = (keyed(session, "run", {"code": COUNT}, "k") for _ in range(2))
    assert first.json() == second.json()
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert session.run("count")["result"] == "1"


def test_queued_cells_keep_their_first_answer_even_after_they_ran(session: Session) -> None:
    first = keyed(session, "cells", {"code": COUNT}, "k")
    session.run()
    second = keyed(session, "cells", {"code": COUNT}, "k")
    assert (second.status_code, second.json()) == (201, first.json())
    assert session.get()["cells_total"] == 1


def test_every_post_is_answered_once(http: httpx.Client, session: Session) -> None:
    for what in ("interrupt", "reset"):
        first, second = (keyed(session, what, None, what) for _ in range(2))
        assert (first.status_code, first.content) == (second.status_code, second.content)
    assert session.get()["generation"] == 2
    headers = {"Idempotency-Key": f"execute-{session.id}"}
    body = {"code": "import time; print(time.time_ns())"}
    runs = [http.post("/v1/execute", json=body, headers=headers).json() for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_key_with_another_body_or_path_is_refused(session: Session) -> None:
    keyed(session, "run", {"code": COUNT}, "k")
    for what, body in (("run", {"code": "other"}), ("cells", {"code": COUNT})):
        reply = keyed(session, what, body, "k")
        assert (reply.status_code, reply.json()["code"]) == (422, "idempotency_mismatch")


def test_while_the_first_is_being_answered_the_second_is_told_to_wait(session: Session) -> None:
    body = {"code": "import time; time.sleep(1.5)"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(keyed, session, "run", body, "k")
        session.wait_until_running()
        second = keyed(session, "run", body, "k")
        assert (second.status_code, second.json()["code"]) == (409, "request_in_progress")
        assert int(second.headers["Retry-After"]) >= 1
        assert keyed(session, "run", {"code": "other"}, "k").json()["code"] == "idempotency_mismatch"
        assert first.result().json() == keyed(session, "run", body, "k").json()


@pytest.mark.parametrize("by", ["key", "cell_id"])
def test_a_storm_of_retries_runs_the_cell_once(session: Session, by: str) -> None:
    def attempt(_: int) -> httpx.Response:
        if by == "key":
            return keyed(session, "run", {"code": f"import time; time.sleep(0.2); {COUNT}"}, "storm")
        return session.post("run", {"code": f"import time; time.sleep(0.2); {COUNT}", "cell_id": "storm"})

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(attempt, range(48)))
    assert {reply.status_code for reply in replies} <= {200, 409}
    assert {reply.json()["run_id"] for reply in replies if reply.status_code == 200} == {attempt(0).json()["run_id"]}
    assert session.run("count")["result"] == "1"


def test_a_cell_id_gives_the_run_it_was_part_of(session: Session) -> None:
    session.queue("first = 1", cell_id="one")
    run = session.run("print('two')", cell_id="two")
    assert session.run("first = 1", cell_id="one") == run
    assert session.run("print('two')", cell_id="two") == run
    assert session.queue("first = 1", cell_id="one")["cells"][0]["status"] == "ok"
    assert session.get()["cells_total"] == 2


def test_a_pending_cell_may_be_run_by_its_id(session: Session) -> None:
    session.queue(COUNT, cell_id="one")
    assert session.run(COUNT, cell_id="one")["stdout"] == "1\n"


def test_a_cell_id_with_another_code_is_refused(session: Session) -> None:
    session.queue("1", cell_id="one")
    for what in ("cells", "run"):
        reply = session.post(what, {"code": "2", "cell_id": "one"})
        assert (reply.status_code, reply.json()["code"]) == (422, "idempotency_mismatch")
    mixed = session.post("cells", {"cells": [{"code": "new"}, {"code": "2", "cell_id": "one"}]})
    assert mixed.json()["code"] == "idempotency_mismatch"
    assert session.get()["cells_total"] == 1


def test_a_withdrawn_cell_cannot_be_run_by_its_id(session: Session) -> None:
    session.queue("1", cell_id="one")
    session.http.delete(f"{session.path}/cells/one")
    reply = session.post("run", {"code": "1", "cell_id": "one"})
    assert (reply.status_code, reply.json()["code"]) == (409, "cell_not_pending")

"""A client that goes away does not leave a cell running: unless it, or anybody, can still ask for the answer."""

import contextlib
from collections.abc import Mapping
from typing import Any

import httpx

from tests.integration.executor.conftest import Session, wait_until

FOREVER = "import time\nwhile True: time.sleep(0.05)"


def leave(session: Session, body: Any, path: str | None = None, headers: Mapping[str, str] | None = None) -> None:
    """Ask, and cut the connection."""
    with httpx.Client(base_url=session.http.base_url) as client, contextlib.suppress(httpx.ReadTimeout):
        timeout = httpx.Timeout(30, read=0.3)
        client.post(path or f"{session.path}/run", json=body, headers=headers, timeout=timeout)


def statuses(session: Session) -> list[str]:
    return [cell["status"] for cell in session.get("cells")["cells"]]


def test_the_cell_of_a_client_that_left_is_interrupted_and_frees_the_session(session: Session) -> None:
    session.run("kept = 1")
    session.queue(FOREVER)
    session.queue("kept = 2")
    leave(session, {"code": "kept = 3", "on_error": "continue"})
    assert session.run("kept")["result"] == "1"
    assert statuses(session)[1:4] == ["error", "skipped", "skipped"]


def test_the_same_holds_for_a_stream(session: Session) -> None:
    session.run("kept = 1")
    leave(session, {"code": FOREVER}, f"{session.path}/run?stream=true")
    assert session.run("kept")["result"] == "1"
    assert session.get("cells")["cells"][1]["error"]["type"] == "KeyboardInterrupt"


def test_a_run_that_waits_is_withdrawn_when_its_client_leaves(session: Session) -> None:
    session.run("import time; kept = 1")
    later = session.post("run", {"code": "time.sleep(3)"}, Prefer="respond-async")
    session.wait_until_running()
    leave(session, {"code": "kept = 2"})
    assert session.run("kept")["result"] == "1"
    assert statuses(session) == ["ok", "ok", "withdrawn", "ok"]
    assert session.get(f"runs/{later.json()['run_id']}")["status"] == "ok"


def test_with_a_key_or_a_cell_id_the_run_goes_on_and_is_found(session: Session) -> None:
    session.run("import time; runs = 0")
    code = "time.sleep(2); runs += 1; runs"
    key = {"Idempotency-Key": f"{session.id}-keyed"}
    leave(session, {"code": code}, headers=key)
    leave(session, {"code": code, "cell_id": "named"})
    wait_until(lambda: session.post("run", {"code": code, "cell_id": "named"}).is_success)
    assert session.post("run", {"code": code}, **key).json()["result"] == "1"
    assert session.run(code, cell_id="named")["result"] == "2"


def test_with_a_key_a_stream_goes_on_too(session: Session) -> None:
    session.run("import time")
    key = {"Idempotency-Key": f"{session.id}-streamed"}
    leave(session, {"code": "time.sleep(2); 7"}, f"{session.path}/run?stream=true", key)
    wait_until(lambda: session.post("run", {"code": "time.sleep(2); 7"}, **key).is_success)
    assert statuses(session) == ["ok", "ok"]


def test_a_patient_client_is_not_taken_for_gone(session: Session) -> None:
    assert session.run("import time; time.sleep(2.5); 'here'")["result"] == "'here'"


def test_an_executed_cell_ends_with_its_client(session: Session) -> None:
    before = killed(session)
    leave(session, {"code": FOREVER, "timeout_s": 50}, "/v1/execute")
    wait_until(lambda: killed(session) == before + 1, timeout_s=40)


def killed(session: Session) -> float:
    """How many cells of the server have ended so."""
    lines = session.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("cellar_cells_total") and "killed" in line)

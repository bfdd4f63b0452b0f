"""Cells that do not heed their time limit, through the whole service: what is said of the session afterwards."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cellar_client.schemas import Tier
from cellar_executor.settings import find_binary
from tests.executor_process import ExecutorProcess

STUBBORN = {
    "c-loop": "sum(range(10**12))",
    "ignored": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    "swallowed": "import time\nwhile True:\n try: time.sleep(9)\n except BaseException: pass",
}


@pytest.fixture(scope="module")
def http(tier: Tier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    flags = ("--isolation", tier, "--zygotes", "1", "--ready-sessions", "1")
    folder: Path = tmp_path_factory.mktemp(tier)
    command = (str(find_binary("cellar-executor")),)
    with (
        ExecutorProcess(folder, *flags, command=command) as executor,
        httpx.Client(base_url=executor.url, timeout=60) as client,
    ):
        yield client


def a_session_with_x(http: httpx.Client, recovery: str) -> str:
    created = http.post("/v1/sessions", json={"recovery": recovery})
    session_id: str = created.json()["session_id"]
    assert http.post(f"/v1/sessions/{session_id}/run", json={"code": "x = 41"}).json()["status"] == "ok"
    return session_id


@pytest.mark.parametrize("code", STUBBORN.values(), ids=STUBBORN)
def test_after_a_kill_a_session_is_rebuilt_where_it_may_be(http: httpx.Client, code: str) -> None:
    session_id = a_session_with_x(http, "replay")
    late = http.post(f"/v1/sessions/{session_id}/run", json={"code": code, "timeout_s": 0.3}).json()
    assert late["status"] == "timeout"
    after = http.post(f"/v1/sessions/{session_id}/run", json={"code": "x + 1"}).json()
    assert (after["status"], after["result"], after["recovered"], after["generation"]) == ("ok", "42", True, 2)


@pytest.mark.parametrize("code", STUBBORN.values(), ids=STUBBORN)
def test_after_a_kill_a_session_is_lost_where_it_may_not(http: httpx.Client, code: str) -> None:
    session_id = a_session_with_x(http, "fail")
    late = http.post(f"/v1/sessions/{session_id}/run", json={"code": code, "timeout_s": 0.3}).json()
    assert late["status"] == "timeout"
    after = http.post(f"/v1/sessions/{session_id}/run", json={"code": "x + 1"})
    assert (after.status_code, after.json()["code"]) == (410, "session_lost")


def test_a_cell_that_heeds_the_interrupt_loses_nothing(http: httpx.Client) -> None:
    session_id = a_session_with_x(http, "fail")
    late = http.post(f"/v1/sessions/{session_id}/run", json={"code": "while True: pass", "timeout_s": 0.3}).json()
    assert late["status"] == "timeout"
    after = http.post(f"/v1/sessions/{session_id}/run", json={"code": "x + 1"}).json()
    assert (after["result"], after["recovered"], after["generation"]) == ("42", False, 1)

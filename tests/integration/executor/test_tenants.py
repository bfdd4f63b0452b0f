"""Tenants on a real server: keys that come and go, walls between tenants, and what each may have."""

import asyncio
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from cellar_executor.cli import main
from tests.executor_process import COMMAND, ExecutorProcess
from tests.integration.conftest import StartExecutor
from tests.integration.executor.conftest import Session, connect, wait_until

SLOW = "import time; begun = time.time(); time.sleep(1); print(begun, time.time())"


def keys(*words: str) -> Result:
    return CliRunner().invoke(main, ["keys", *words])


def add_key(data_dir: Path, name: str, *flags: str) -> str:
    done = keys("add", name, "--data-dir", str(data_dir), *flags)
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def as_owner(executor: ExecutorProcess, key: str) -> httpx.Client:
    """A client with a key that the server knows, or will in a moment; till then the house may be open to all."""
    headers, url = {"Authorization": f"Bearer {key}"}, f"{executor.url}/v1/sessions"
    wait_until(lambda: httpx.get(url).status_code == 401 and httpx.get(url, headers=headers).status_code == 200)
    return connect(executor, headers=headers)


def refused(reply: httpx.Response, status: int, code: str) -> Any:
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    return reply.json()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The data folder of `start_executor`."""
    return tmp_path / "data"


# --- keys ---------------------------------------------------------------------------------------


def test_a_key_that_is_added_closes_the_house_and_opens_to_its_owner_until_it_is_revoked(
    start_executor: StartExecutor, data_dir: Path
) -> None:
    executor = start_executor()
    with connect(executor) as anybody:
        assert anybody.get("/v1/sessions").status_code == 200
        shell = f'KEY=$({COMMAND} keys add alice --data-dir {data_dir}) && echo "$KEY"'
        key = subprocess.run(shell, shell=True, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
        with as_owner(executor, key) as alice:
            wait_until(lambda: anybody.get("/v1/sessions").status_code == 401)
            refused(anybody.post("/v1/execute", json={"code": "1"}), 401, "unauthorized")
            assert Session(alice).run("6 * 7")["result"] == "42"
            assert keys("revoke", "alice", "--data-dir", str(data_dir)).exit_code == 0
            wait_until(lambda: alice.get("/v1/sessions").status_code == 401)
            # The last key is gone, and the house stays closed.
            refused(anybody.get("/v1/sessions"), 401, "unauthorized")
    executor.restart()
    with connect(executor) as anybody:
        assert anybody.get("/v1/sessions").status_code == 200


def test_keys_are_changed_one_after_the_other_while_sessions_stay(
    start_executor: StartExecutor, data_dir: Path
) -> None:
    executor = start_executor()
    with as_owner(executor, add_key(data_dir, "old", "--tenant", "alice", "--sessions", "1")) as before:
        session = Session(before)
        session.run("x = 1")
        with as_owner(executor, add_key(data_dir, "new", "--tenant", "alice")) as after:
            keys("revoke", "old", "--data-dir", str(data_dir))
            wait_until(lambda: before.get("/v1/sessions").status_code == 401)
            session.http = after
            assert session.run("x")["result"] == "1"
            refused(after.post("/v1/sessions"), 429, "too_many_sessions")


def test_keys_of_a_server_that_does_not_run_hold_once_it_does(start_executor: StartExecutor, data_dir: Path) -> None:
    key = add_key(data_dir, "alice")
    executor = start_executor("--host", "0.0.0.0")
    with as_owner(executor, key) as alice, connect(executor) as anybody:
        assert alice.get("/v1/sessions").status_code == 200
        refused(anybody.get("/v1/sessions"), 401, "unauthorized")
        refused(anybody.get("/v1/sessions", headers={"Host": "localhost"}), 401, "unauthorized")


# --- walls between tenants ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorProcess]:
    env = {
        "CELLAR_EXECUTOR_API_KEYS": "alice:0123456789abcdef,bob:fedcba9876543210",
        "CELLAR_EXECUTOR_PREIMPORT": "python=",
    }
    with ExecutorProcess(tmp_path_factory.mktemp("shared"), env=env) as running:
        yield running


@pytest.fixture
def alice(shared: ExecutorProcess) -> Iterator[httpx.Client]:
    with connect(shared, headers={"Authorization": "Bearer 0123456789abcdef"}) as client:
        yield client


@pytest.fixture
def bob(shared: ExecutorProcess) -> Iterator[httpx.Client]:
    with connect(shared, headers={"Authorization": "Bearer fedcba9876543210"}) as client:
        yield client


@pytest.fixture
def secret(alice: httpx.Client) -> Iterator[Session]:
    """A session of Alice's with a bit of everything."""
    session = Session(
        alice, session_id=f"of-alice-{secrets.token_hex(4)}", recovery="replay", metadata={"note": "hush-metadata"}
    )
    session.run("x = 'hush-state'; open('f', 'w').write('hush-file')", cell_id="done")
    session.queue("x", cell_id="pending")
    yield session
    alice.delete(session.path)


BODIES: dict[str, Any] = {
    "/v1/sessions/{session_id}/cells": {"code": "1"},
    "/v1/sessions/{session_id}/run": {"code": "1"},
}


def test_no_route_reaches_what_is_another_tenant_s(secret: Session, bob: httpx.Client, alice: httpx.Client) -> None:
    run_id = secret.run(cell_id=None)["run_id"]
    secret.queue("x", cell_id="still-pending")
    before = secret.get(), secret.get("cells")
    places = {"session_id": secret.id, "cell_id": "still-pending", "run_id": run_id, "path": "f"}
    tried = 0
    for path, methods in bob.get("/openapi.json").json()["paths"].items():
        if "{session_id}" not in path:
            continue
        for method in methods:
            body = {} if method in ("get", "delete") else {"json": BODIES.get(path, {})}
            reply = bob.request(method, path.format(**places), **body)
            if (method, path) == ("delete", "/v1/sessions/{session_id}"):
                assert reply.status_code == 204  # as for any session that is gone
            else:
                refused(reply, 404, "session_not_found")
            assert "hush" not in reply.text
            tried += 1
    assert tried >= 15
    assert (secret.get(), secret.get("cells")) == before
    assert alice.get(f"{secret.path}/files/f").text == "hush-file"
    assert secret.run()["result"] == "'hush-state'"


def test_no_list_batch_or_key_of_the_same_name_tells_of_another_tenant(
    secret: Session, bob: httpx.Client, alice: httpx.Client
) -> None:
    assert bob.get("/v1/sessions").json() == {"sessions": [], "next_cursor": None}
    assert bob.get("/v1/sessions", params={"cursor": "a"}).json()["sessions"] == []
    operations = [
        {"op": "run", "session_id": secret.id, "code": "x"},
        {"op": "queue", "session_id": secret.id, "code": "x"},
    ]
    results = bob.post("/v1/batch", json={"operations": operations}).json()["results"]
    assert [result["status"] for result in results] == [404, 404]
    request = {"json": {"code": "print('mine')"}, "headers": {"Idempotency-Key": "the-same"}}
    first, second = (client.post("/v1/execute", **request) for client in (alice, bob))  # type: ignore[arg-type]  # two kinds of values
    assert first.json()["run_id"] != second.json()["run_id"]
    assert "Idempotency-Replayed" not in second.headers
    own = Session(bob, session_id=secret.id)
    assert own.run("'x' in globals()")["result"] == "False"
    assert [session["session_id"] for session in bob.get("/v1/sessions").json()["sessions"]] == [secret.id]
    bob.delete(own.path)
    assert secret.run()["result"] == "'hush-state'"


# --- how much each may have ---------------------------------------------------------------------


def test_each_quota_has_its_code_and_says_truly_when_to_come_again(
    start_executor: StartExecutor, data_dir: Path
) -> None:
    executor = start_executor()
    key = add_key(data_dir, "alice", "--sessions", "2", "--cells-per-s", "2", "--memory-mb", "600")
    with as_owner(executor, key) as alice, as_owner(executor, add_key(data_dir, "bob")) as bob:
        session = Session(alice)
        cells = {"cells": [{"code": "1"}] * 4}
        assert session.post("cells", cells).status_code == 201  # a second's, and as much again on credit
        for what, body in (("cells", cells), ("run", {"code": "1"})):
            reply = session.post(what, body)
            wait_s = refused(reply, 429, "quota_exceeded")["retry_after_s"]
            assert wait_s <= int(reply.headers["Retry-After"]) < wait_s + 1
            time.sleep(wait_s)
            assert session.post(what, body).status_code in (200, 201)
        assert session.get()["cells_total"] == 4 + 4 + 1
        small = {"limits": {"memory_mb": 32}}
        refused(alice.post("/v1/execute", json={"code": "1", **small}), 429, "quota_exceeded")  # of cells again
        refused(alice.post("/v1/sessions"), 429, "quota_exceeded")  # of memory: 512 MB twice
        Session(alice, **small)
        full = alice.post("/v1/sessions", json=small)
        refused(full, 429, "too_many_sessions")
        assert int(full.headers["Retry-After"]) >= 1
        for _ in range(4):
            assert Session(bob).run("1")["result"] == "1"


def test_runs_beyond_a_tenant_s_bound_wait_for_its_own_and_no_other_does(
    start_executor: StartExecutor, data_dir: Path
) -> None:
    executor = start_executor()
    key = add_key(data_dir, "alice", "--running", "1")
    with as_owner(executor, key) as alice, as_owner(executor, add_key(data_dir, "bob")) as bob:
        sessions, answers = [Session(alice) for _ in range(2)], list[Any]()
        others = Session(bob)
        threads = [threading.Thread(target=lambda s=s: answers.append(s.run(SLOW))) for s in sessions]
        for thread in threads:
            thread.start()
        other = others.run("import time; print(time.time())")
        for thread in threads:
            thread.join()
        spans = sorted(tuple(map(float, answer["stdout"].split())) for answer in answers)
        assert spans[0][1] <= spans[1][0]
        assert float(other["stdout"]) < spans[1][0]


async def test_a_flood_of_one_tenant_lets_another_s_single_run_be_the_next(
    start_executor: StartExecutor,
) -> None:
    keys_of = {"flood": "0123456789abcdef", "single": "fedcba9876543210"}
    env = {"CELLAR_EXECUTOR_API_KEYS": ",".join(f"{name}:{key}" for name, key in keys_of.items())}
    executor = start_executor("--max-running", "1", "--drain-timeout-s", "0.1", env=env)
    order: list[str] = []

    async def execute(http: httpx.AsyncClient, name: str, code: str) -> None:
        headers = {"Authorization": f"Bearer {keys_of[name]}"}
        reply = await http.post("/v1/execute", json={"code": code}, headers=headers)
        assert reply.json()["status"] == "ok", reply.text
        order.append(name)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=executor.url, timeout=60, limits=limits) as http:
        flood = [asyncio.create_task(execute(http, "flood", "import time; time.sleep(2)"))]
        flood += [asyncio.create_task(execute(http, "flood", "import time; time.sleep(.2)")) for _ in range(199)]
        await asyncio.sleep(1)
        await execute(http, "single", "1")
        assert order.count("flood") <= 2  # the one that ran, and one that was next already
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)

"""Two servers on one Redis: either answers any request on a session, and only its owner does what it asks."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from cellar_executor.redis_server import redis_server
from cellar_executor.settings import find_binary
from tests.executor_process import COMMAND, ExecutorProcess
from tests.integration.executor.conftest import Session, connect, wait_until

LEASE_S = 2.0
KEYS = {"default": "0123456789abcdef", "other": "fedcba9876543210"}
COUNT = "count = globals().get('count', 0) + 1; print(count)"


class Pair:
    """Two servers, and a client of each. Sessions are made on `one`, and what a test does goes to `two`."""

    def __init__(self, executors: list[ExecutorProcess], clients: list[httpx.Client]) -> None:
        self.executors = executors
        self.one, self.two = clients

    def session(self, **create: Any) -> Session:
        session = Session(self.one, **create)
        session.http = self.two
        return session


@contextmanager
def open_pair(folder: Path) -> Iterator[Pair]:
    binary = find_binary("redis-server", COMMAND.parent / "redis-server")
    assert binary is not None
    keys = ",".join(f"{tenant}:{key}" for tenant, key in KEYS.items())
    env = {"CELLAR_EXECUTOR_API_KEYS": keys, "CELLAR_EXECUTOR_PREIMPORT": "python="}
    with redis_server(binary, folder / "redis") as redis, ExitStack() as stack:
        flags = ["--insecure-no-isolation", "--redis-url", redis.url, "--lease-s", str(LEASE_S)]
        executors = [stack.enter_context(ExecutorProcess(folder / name, *flags, env=env)) for name in ("one", "two")]
        clients = [stack.enter_context(connect(executor, headers=authorization())) for executor in executors]
        yield Pair(executors, clients)


def authorization(tenant: str = "default") -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[tenant]}"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """For tests that kill none of the two."""
    with open_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Pair]:
    with open_pair(tmp_path) as pair:
        yield pair


def test_a_session_is_the_same_on_both(pair: Pair) -> None:
    session = pair.session(recovery="replay")
    session.queue("x = 6")
    assert session.run("x * 7")["result"] == "42"
    cells = session.get("cells")["cells"]
    assert [cell["status"] for cell in cells] == ["ok", "ok"]
    assert session.get("cells") == pair.one.get(f"{session.path}/cells").json()
    assert session.get() == pair.one.get(session.path).json()
    run_id = session.run("1")["run_id"]
    assert session.get(f"runs/{run_id}")["result"] == "1"
    withdrawn = session.queue("2")["cells"][0]["cell_id"]
    assert pair.two.delete(f"{session.path}/cells/{withdrawn}").json()["status"] == "withdrawn"
    reset = session.post("reset")
    assert (reset.status_code, reset.json()["generation"]) == (200, 2)
    assert session.run("'x' in globals()")["result"] == "False"
    listed = [found["session_id"] for found in pair.two.get("/v1/sessions").json()["sessions"]]
    assert session.id in listed
    assert pair.two.delete(session.path).status_code == 204
    assert pair.one.get(session.path).status_code == pair.two.get(session.path).status_code == 404


@pytest.mark.parametrize(
    "name", ["plain", "with space", "a/b/c", "100%", "%2F", "q?a=b&c#d", "ünï", "line\nbreak", "+"]
)
def test_files_of_any_name(pair: Pair, name: str) -> None:
    session = pair.session()
    path = f"{session.path}/files/{quote(name)}"
    data = os.urandom(100_000)
    assert pair.two.put(path, content=data).status_code == 204
    assert [found["path"] for found in session.get("files")["files"]] == [name]
    assert pair.two.get(path).content == pair.one.get(path).content == data
    assert session.run(f"len(open({name!r}, 'rb').read())")["result"] == "100000"
    assert pair.two.delete(path).status_code == 204
    assert pair.two.get(path).json()["code"] == "file_not_found"


def test_forks_are_where_their_origin_is_and_reached_from_both(pair: Pair) -> None:
    session = pair.session()
    session.run("x = 1")
    forks = session.post("fork", {"count": 2}).json()["sessions"]
    for fork, http in zip(forks, (pair.one, pair.two), strict=True):
        assert http.post(f"/v1/sessions/{fork['session_id']}/run", json={"code": "x"}).json()["result"] == "1"


def test_interrupt(pair: Pair) -> None:
    session = pair.session()
    with asking(lambda: session.run("import time; time.sleep(60)")) as answer:
        session.wait_until_running()
        assert session.post("interrupt").status_code == 202
    assert answer()["error"]["type"] == "KeyboardInterrupt"


def test_events_flow(pair: Pair) -> None:
    session = pair.session()
    code = {"code": "print('first', flush=True); import time; time.sleep(60)"}
    with session.http.stream("POST", f"{session.path}/run", params={"stream": "true"}, json=code) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            if "first" in line:  # while the cell runs
                assert session.post("interrupt").status_code == 202
        assert "KeyboardInterrupt" in line or line == ""
    assert session.get("cells")["cells"][0]["status"] == "error"


def test_errors_come_back_as_they_are(pair: Pair) -> None:
    session = pair.session()
    for method, path, body in [
        ("GET", "cells/none", None),
        ("GET", "runs/none", None),
        ("GET", "none", None),
        ("POST", "cells", {"code": 1}),
        ("POST", "run", {"code": "1", "cell_id": "bad id"}),
        ("GET", "files/%FF", None),
    ]:
        answers = [http.request(method, f"{session.path}/{path}", json=body) for http in (pair.one, pair.two)]
        assert answers[0].status_code == answers[1].status_code >= 400
        assert answers[0].json() == answers[1].json()
        assert answers[0].headers["Content-Type"] == answers[1].headers["Content-Type"]
    error = session.run("1 / 0")
    assert (error["status"], error["error"]["type"]) == ("error", "ZeroDivisionError")


def test_another_tenants_session_is_not_there(pair: Pair) -> None:
    session = pair.session()
    for http in (pair.one, pair.two):
        reply = http.get(session.path, headers=authorization("other"))
        assert (reply.status_code, reply.json()["code"]) == (404, "session_not_found")
    assert pair.two.get(session.path, headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_retry_over_the_other_server_finds_the_first_answer(pair: Pair) -> None:
    key = {"Idempotency-Key": "retry"}
    session = pair.session()
    for what, body in [("run", {"code": COUNT}), ("cells", {"code": COUNT}), ("fork", {})]:
        key = {"Idempotency-Key": f"retry-{what}"}
        first = session.post(what, body, **key)
        again = pair.one.post(f"{session.path}/{what}", json=body, headers=key)
        assert (first.status_code, first.json()) == (again.status_code, again.json())
        assert "Idempotency-Replayed" not in first.headers
        assert session.post(what, body, **key).headers["Idempotency-Replayed"] == "true"
    assert session.run(COUNT)["stdout"] == "2\n3\n"
    made = [http.post("/v1/sessions", headers={"Idempotency-Key": "create"}).json() for http in (pair.one, pair.two)]
    assert made[0]["session_id"] == made[1]["session_id"]


def test_a_batch_over_both_is_done_once(pair: Pair) -> None:
    ids = [Session(http).id for http in (pair.one, pair.two, pair.one)]
    operations = [
        *({"op": "queue", "session_id": name, "code": COUNT} for name in ids),
        {"op": "create", "session_id": "of-the-batch"},
        *({"op": "run", "session_id": name, "code": COUNT} for name in [*ids, "of-the-batch"]),
        {"op": "delete", "session_id": ids[0]},
    ]
    answers = []
    for http in (pair.one, pair.two, pair.one):
        reply = http.post("/v1/batch", json={"operations": operations}, headers={"Idempotency-Key": "batch"})
        assert reply.status_code == 200, reply.text
        answers.append(reply.json())
    assert answers[0] == answers[1] == answers[2]
    results = answers[0]["results"]
    assert [result["status"] for result in results] == [201] * 4 + [200] * 4 + [204]
    assert [result["body"]["stdout"] for result in results[4:8]] == ["1\n2\n"] * 3 + ["1\n"]


def test_an_owner_that_is_killed_while_it_is_waited_for(mortal: Pair) -> None:
    session = mortal.session()
    body, key = {"code": "import time; time.sleep(60)"}, {"Idempotency-Key": "k"}
    with asking(lambda: session.post("run", body, **key)) as answer:
        session.wait_until_running()
        mortal.executors[0].kill()
        killed_at = time.monotonic()
    assert (answer().status_code, answer().json()["code"]) == (503, "owner_unavailable")
    assert time.monotonic() - killed_at < LEASE_S + 2

    final = until_not_owner_unavailable(lambda: session.post("run", body, **key))
    assert final.json()["cells"][0]["status"] == "lost"
    assert session.post("run", {"code": "1"}).json()["code"] == "session_lost"


def test_an_owner_that_is_stopped_while_it_is_waited_for(mortal: Pair) -> None:
    session = mortal.session(recovery="replay")
    assert session.run("x = 1")["status"] == "ok"
    body, key = {"code": "import time; time.sleep(60)"}, {"Idempotency-Key": "k"}
    with asking(lambda: session.post("run", body, **key)) as answer:
        session.wait_until_running()
        os.kill(mortal.executors[0].process.pid, signal.SIGSTOP)
    assert (answer().status_code, answer().json()["code"]) == (503, "owner_unavailable")
    answered = until_not_owner_unavailable(lambda: session.post("run", body, **key))
    assert answered.json()["cells"][0]["status"] == "lost"
    assert session.run("x")["result"] == "1"
    os.kill(mortal.executors[0].process.pid, signal.SIGCONT)
    wait_until(lambda: mortal.one.get(session.path).status_code == 200)
    session.http = mortal.one
    assert session.run("x")["result"] == "1"


def until_not_owner_unavailable(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """What is heard when the lease is over."""
    deadline = time.monotonic() + LEASE_S + 5
    while (reply := ask()).status_code == 503 and reply.json()["code"] == "owner_unavailable":
        assert reply.headers["Retry-After"] == "1"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return reply


@contextmanager
def asking(ask: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """`ask` goes on beside what is inside; its answer is there afterwards."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    yield lambda: answers[0]
    thread.join()

"""The server as a process: how it starts, what it refuses to start with, how it ends, what it leaves behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from cellar_executor.redis_server import redis_server
from cellar_executor.settings import find_binary
from tests.executor_process import COMMAND, ExecutorProcess
from tests.integration.conftest import StartExecutor
from tests.integration.executor.conftest import Session, connect, wait_until


def descendants(pid: int) -> set[int]:
    """Every process below `pid`."""
    children = {
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }
    return children.union(*(descendants(child) for child in children if Path(f"/proc/{child}").exists()))


def running(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def wait_until_gone(pids: set[int]) -> None:
    wait_until(lambda: not running(pids))


def refused(*flags: str, env: dict[str, str] | None = None) -> str:
    """What a server that does not start says."""
    command = [str(COMMAND), "serve", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_the_start_line_says_address_isolation_and_place_of_the_state(executor: ExecutorProcess) -> None:
    line = executor.log.splitlines()[0]
    assert executor.url in line
    assert "isolation warm" in line
    assert "state in " in line


def test_help_shows_every_environment_variable_and_version_answers() -> None:
    shown = subprocess.run(
        [COMMAND, "serve", "--help"], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
    ).stdout
    for flag in ("HOST", "PORT", "API_KEYS", "REDIS_URL", "DATA_DIR", "MAX_SESSIONS", "INSECURE_NO_ISOLATION"):
        assert f"CELLAR_EXECUTOR_{flag}" in shown
    version = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("cellar-executor ")


def test_without_keys_only_loopback_is_served(tmp_path: Path) -> None:
    assert "API_KEYS" in refused("--host", "0.0.0.0", "--data-dir", str(tmp_path))


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--memory-mb", "-5", "memory_mb"),
        ("--cell-timeout-s", "nan", "cell_timeout_s"),
        ("--runtime", "old=/nonexistent", "no Python"),
        ("--api-keys", "short", "API key"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, flag: str, value: str, said: str) -> None:
    assert said in refused(flag, value, "--data-dir", str(tmp_path))


def test_an_address_in_use_is_refused(executor: ExecutorProcess, tmp_path: Path) -> None:
    assert "in use" in refused("--port", executor.url.rpartition(":")[2], "--data-dir", str(tmp_path))


def test_without_nsjail_it_does_not_start(tmp_path: Path) -> None:
    assert "nsjail" in refused("--nsjail", "/nonexistent", "--data-dir", str(tmp_path))


def test_a_jail_that_does_not_hold_is_not_served(tmp_path: Path) -> None:
    assert "jail" in refused("--nsjail", "/bin/true", "--data-dir", str(tmp_path))


def test_a_second_server_on_the_same_data_is_refused(start_executor: StartExecutor, tmp_path: Path) -> None:
    executor = start_executor()
    assert "another server uses this data folder" in refused("--data-dir", str(tmp_path / "data"))
    assert httpx.get(f"{executor.url}/healthz").status_code == 200


def test_without_isolation_every_health_answer_says_so(start_executor: StartExecutor) -> None:
    executor = start_executor("--insecure-no-isolation")
    assert "INSECURE" in executor.log.splitlines()[0]
    with connect(executor) as http:
        assert "INSECURE" in http.get("/healthz").json()["isolation"]
        assert http.get("/v1/info").json()["isolation"]["tier"] == "none"
        assert Session(http).run("6 * 7")["result"] == "42"


def test_documentation_is_served(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/sessions/{session_id}/run"]) == {"post"}
    assert http.get("/docs").status_code == 200


@pytest.mark.parametrize("stop", [os.kill, os.killpg], ids=["the server", "its process group"])
def test_sigterm_lets_running_cells_end_refuses_new_work_and_leaves_no_process(
    start_executor: StartExecutor, stop: Callable[[int, int], None]
) -> None:
    executor = start_executor()
    with connect(executor) as http, connect(executor) as other:
        session = Session(http)
        answers: list[Any] = []
        thread = threading.Thread(
            target=lambda: answers.append(session.run("import time; time.sleep(3); print('done')"))
        )
        thread.start()
        session.wait_until_running()
        below = descendants(executor.process.pid)
        stop(executor.process.pid, signal.SIGTERM)
        wait_until(lambda: other.post("/v1/sessions").status_code != 201)
        reply = other.post("/v1/sessions")
        assert (reply.status_code, reply.json()["code"]) == (503, "shutting_down")
        assert int(reply.headers["Retry-After"]) >= 1
        assert other.get("/readyz").status_code == 503
        thread.join()
    assert answers[0]["stdout"] == "done\n"
    assert executor.process.wait(30) == 0
    wait_until_gone(below)


def test_a_cell_that_outlasts_the_drain_is_recorded_as_killed(start_executor: StartExecutor) -> None:
    executor = start_executor("--drain-timeout-s", "0.5")
    with connect(executor) as http:
        session = Session(http)
        answers: list[httpx.Response] = []
        body = {"code": "import time; time.sleep(60)"}
        thread = threading.Thread(target=lambda: answers.append(session.post("run", body)))
        thread.start()
        session.wait_until_running()
        executor.restart()
        thread.join()
        assert answers[0].json()["status"] == "killed"
        http.base_url = httpx.URL(executor.url)
        assert session.get("cells")["cells"][0]["status"] == "killed"


def test_sigkill_leaves_no_process(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        Session(http)
        below = descendants(executor.process.pid)
    assert below
    executor.kill()
    wait_until_gone(below)
    executor.start()


def test_idle_sessions_expire_and_busy_ones_do_not(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        idle, busy = Session(http, idle_ttl_s=1.5), Session(http, idle_ttl_s=1.5)
        assert busy.run("import time; time.sleep(4); 1")["result"] == "1"
        assert http.get(idle.path).status_code == 404
        assert busy.run("2")["result"] == "2"


def test_logs_tell_of_cells_but_never_their_code(executor: ExecutorProcess, session: Session) -> None:
    run = session.run("'very secret' + ' indeed'")
    assert run["run_id"] in executor.log
    assert "secret" not in executor.log


# --- Redis --------------------------------------------------------------------------------------


def test_a_redis_that_died_is_started_again_and_nothing_is_lost(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http)
        session.run("x = 1")
        redis = next(pid for pid in descendants(executor.process.pid) if is_redis(pid))
        os.kill(redis, signal.SIGKILL)
        reply = session.post("run", {"code": "x"})
        assert (reply.status_code, reply.json()["code"]) == (503, "store_unavailable")
        assert int(reply.headers["Retry-After"]) >= 1
        wait_until(lambda: session.post("run", {"code": "x"}).status_code == 200)
        assert session.run("x")["result"] == "1"


def is_redis(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith("redis-server")


def test_with_redis_down_running_cells_finish_and_nothing_new_is_accepted(tmp_path: Path) -> None:
    binary = find_binary("redis-server", COMMAND.parent / "redis-server")
    assert binary is not None
    with (
        redis_server(binary, tmp_path / "redis") as redis,
        ExecutorProcess(tmp_path / "data", "--redis-url", redis.url) as executor,
        connect(executor) as http,
    ):
        session = Session(http)
        answers: list[httpx.Response] = []
        body = {"code": "import time; time.sleep(2); x = 7", "cell_id": "c"}
        thread = threading.Thread(target=lambda: answers.append(session.post("run", body)))
        thread.start()
        session.wait_until_running()
        redis.stop()
        for reply in (
            http.post("/v1/sessions"),
            session.post("cells", {"code": "1"}),
            session.post("run", {"code": "1"}),
            http.get(session.path),
        ):
            assert (reply.status_code, reply.json()["code"]) == (503, "store_unavailable")
            assert int(reply.headers["Retry-After"]) >= 1
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").json()["redis"] != "ok"
        time.sleep(3)
        redis.ensure_running()
        redis.wait_until_ready()
        thread.join()
        assert answers[0].status_code == 200
        assert session.get("cells/c")["status"] == "ok"
        assert session.run("x")["result"] == "7"
        assert session.get()["cells_total"] == 2


def test_a_redis_that_may_evict_is_refused(tmp_path: Path) -> None:
    binary = COMMAND.parent / "redis-server"
    socket = tmp_path / "s"
    command = [
        str(binary),
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--save",
        "",
        "--maxmemory-policy",
        "allkeys-lru",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_until(socket.exists)
        assert "noeviction" in refused("--redis-url", f"unix://{socket}", "--data-dir", str(tmp_path))
        process.terminate()


def test_a_full_redis_is_refused_in_words(tmp_path: Path) -> None:
    binary = find_binary("redis-server", COMMAND.parent / "redis-server")
    assert binary is not None
    with redis_server(binary, tmp_path / "redis") as redis:
        with Redis.from_url(redis.url) as client:
            client.config_set("maxmemory", "1")
        assert "Redis is full" in refused("--redis-url", redis.url, "--data-dir", str(tmp_path))


@pytest.mark.parametrize("url", ["unix:///nonexistent", "redis://127.0.0.1:1"])
def test_a_redis_that_does_not_answer_is_refused(tmp_path: Path, url: str) -> None:
    assert "Redis cannot be used" in refused("--redis-url", url, "--data-dir", str(tmp_path))


def test_a_runtime_that_no_request_could_name_is_refused(tmp_path: Path) -> None:
    assert "bad/name" in refused("--runtime", f"bad/name={sys.executable}", "--data-dir", str(tmp_path))

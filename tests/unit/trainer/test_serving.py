"""The model server's process: its end is told with its log, and it never outlives its owner. No vLLM is needed here."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cellar_trainer.serving import ServerFailed, VLLMServer

OWNER = """
import sys
from pathlib import Path
from cellar_trainer.serving import VLLMServer
with VLLMServer(Path("m"), log=Path(sys.argv[1]), python=Path(sys.argv[2])):
    pass
"""


def hanging_python(folder: Path) -> Path:
    """Stands for vLLM's Python: says who it is and never comes up."""
    script = folder / "python"
    script.write_text("#!/bin/sh\necho pid $$\nexec sleep 600\n")
    script.chmod(0o755)
    return script


def wait_for_pid(log: Path) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if log.exists() and log.read_text().startswith("pid ") and log.read_text().endswith("\n"):
            return int(log.read_text().split()[1])
        time.sleep(0.05)
    pytest.fail("the server did not start")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_server_that_ends_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no such model; exit 3\n")
    script.chmod(0o755)
    server = VLLMServer(tmp_path, log=tmp_path / "log", python=script)
    with pytest.raises(ServerFailed, match=r"(?s)status 3.*no such model"):
        server.__enter__()


def test_a_server_that_does_not_come_up_in_time_is_ended(tmp_path: Path) -> None:
    server = VLLMServer(tmp_path, log=tmp_path / "log", python=hanging_python(tmp_path), start_timeout_s=1.0)
    with pytest.raises(ServerFailed, match="not up within 1 s"):
        server.__enter__()
    assert gone(wait_for_pid(tmp_path / "log"))


def test_a_server_dies_with_an_owner_that_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(log), str(hanging_python(tmp_path))])
    server = wait_for_pid(log)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert gone(server)


def serving_python(folder: Path) -> Path:
    """Stands for vLLM's Python: answers as a healthy server would."""
    script = folder / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import http.server, os, sys\n"
        "print('pid', os.getpid(), flush=True)\n"
        "class Healthy(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "port = int(sys.argv[sys.argv.index('--port') + 1])\n"
        "http.server.HTTPServer(('127.0.0.1', port), Healthy).serve_forever()\n"
    )
    script.chmod(0o755)
    return script


def pids(log: Path) -> list[int]:
    return [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("pid ")]


def test_a_server_that_was_killed_is_started_again_as_often_as_was_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with VLLMServer(tmp_path, log=log, python=serving_python(tmp_path), restarts=1) as server:
        os.kill(pids(log)[0], signal.SIGKILL)
        deadline = time.monotonic() + 30
        while len(pids(log)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        first, second = pids(log)
        assert gone(first)
        assert server.alive
        os.kill(second, signal.SIGKILL)
        while server.alive and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.alive
    assert gone(second)
    assert len(pids(log)) == 2

"""The `cellar` command, as a shell runs it, against a real server."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cellar_client import Cellar

Finished = subprocess.CompletedProcess[str]
Command = Callable[..., Finished]
CELLAR = Path(sys.executable).with_name("cellar")


def run_command(url: str, *arguments: str, stdin: str = "") -> Finished:
    environment = {**os.environ, "CELLAR_URL": url}
    return subprocess.run(
        [CELLAR, *arguments], input=stdin, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def command(executor_url: str) -> Command:
    return lambda *arguments, stdin="": run_command(executor_url, *arguments, stdin=stdin)


def test_a_file_runs_cell_by_cell_in_one_session(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "notebook.py"
    file.write_text("# %%\nx = 6\n# %%\nimport sys; print('err', file=sys.stderr)\nprint(x * 7)\n'last'\n")
    done = command("run", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n'last'\n", "err\n")


def test_a_failing_cell_shows_its_traceback_and_stops(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "notebook.py"
    file.write_text("print('before')\n#---\n1 / 0\n#---\nprint('after')")
    done = command("run", str(file), "--cell-marker", "#---")
    assert (done.returncode, done.stdout) == (1, "before\n")
    assert done.stderr.startswith("cell 2 of 3:\nTraceback")
    assert "ZeroDivisionError" in done.stderr


def test_the_session_of_a_file_is_deleted(command: Command, executor_url: str, tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("1 / 0")
    with Cellar(executor_url) as cellar:
        before = {found.session_id for found in cellar.sessions()}
        command("run", str(file))
        assert {found.session_id for found in cellar.sessions()} <= before


def test_an_interrupted_command_deletes_its_session_too(executor_url: str, tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("import time; time.sleep(60)")
    with Cellar(executor_url) as cellar:
        before = {found.session_id for found in cellar.sessions()}
        with subprocess.Popen([CELLAR, "--url", executor_url, "run", file], stderr=subprocess.PIPE) as process:
            while "running" not in [found.status for found in cellar.sessions() if found.session_id not in before]:
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)
        assert process.returncode != 0
        assert b"Traceback" not in stderr
        assert {found.session_id for found in cellar.sessions()} <= before


def test_a_cell_past_its_time_fails(command: Command) -> None:
    done = command("exec", "while True: pass", "--timeout", "0.2")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.endswith("timeout\n")


def test_code_comes_as_an_argument_or_from_standard_input(command: Command) -> None:
    assert command("exec", "2 ** 10").stdout == "1024\n"
    assert command("exec", "-", stdin="print('piped')\n").stdout == "piped\n"


def test_a_stricter_tier_may_be_asked_for(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("print(1)")
    assert command("exec", "--isolation", "strict", "1 + 1").stdout == "2\n"
    assert command("run", "--isolation", "strict", str(file)).stdout == "1\n"
    assert command("exec", "--isolation", "none", "1").returncode == 2


def test_the_code_may_read_standard_input(command: Command) -> None:
    code = "import sys; print(sum(map(int, sys.stdin)))"
    assert command("exec", "--stdin", code, stdin="1\n2\n3\n").stdout == "6\n"


def test_a_file_that_is_no_text_is_wrong_usage(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_bytes(b"\xff\xfe")
    done = command("run", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_sessions_are_a_table_or_json(command: Command, executor_url: str) -> None:
    with Cellar(executor_url) as cellar, cellar.session(session_id="shown") as session:
        session.queue("1")
        header, *rows = command("sessions").stdout.splitlines()
        assert header.split() == ["id", "status", "generation", "cells", "pending", "expires"]
        assert ["shown", "ready", "1", "1", "1"] in [row.split()[:5] for row in rows]
        described = {found["session_id"]: found for found in json.loads(command("sessions", "--json").stdout)}
        assert described["shown"]["cells_pending"] == 1


def test_the_server_is_described_for_people_or_as_json(command: Command) -> None:
    described = json.loads(command("info", "--json").stdout)
    assert described["isolation"]["tier"] in command("info").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "no-such-file.py"],
        ["exec", "1", "--timeout", "soon"],
        ["exec", "1", "--timeout", "-1"],
        ["exec", "-", "--stdin"],
        ["--url", "nonsense", "info"],
        ["brew"],
    ],
)
def test_wrong_usage_exits_with_2(command: Command, arguments: list[str]) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["exec", "1"], ["sessions"], ["info"]])
def test_without_a_server_one_line_says_so_and_it_exits_with_3(free_port: int, arguments: list[str]) -> None:
    done = run_command(f"http://127.0.0.1:{free_port}", *arguments)
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert str(free_port) in done.stderr


def test_a_refusal_is_one_line_too(guarded_url: str) -> None:
    done = run_command(guarded_url, "info")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("cellar: unauthorized")
    assert len(done.stderr.splitlines()) == 1

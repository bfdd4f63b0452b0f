"""`cellar-trainer eval` from end to end: real executor, the model sampled in the process, and a kill in the middle."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cellar_trainer.cli import app
from cellar_trainer.config import Config
from tests.executor_process import ExecutorProcess
from tests.tiny_model import save_tiny_model

CONFIG = """
output = "{folder}/run"
[model]
path = "{folder}/model"
[tasks]
path = "{folder}/data/sums.jsonl"
[executor]
url = "{executor}"
[policy]
kind = "local"
[rendering]
chat_template = false
prompt = "{{problem}}"
[rollout]
max_turn_tokens = 12
max_context_tokens = 200
concurrency = 2
[eval]
suite = "{folder}/suite.toml"
data = "{folder}/data"
"""
SUITE = """
[[set]]
name = "sums"
path = "sums.jsonl"
n = 4
[[set]]
name = "differences"
path = "differences.jsonl"
n = 2
"""
PLACES = {("sums", f"sums:{row}", i) for row in range(1, 5) for i in range(4)} | {
    ("differences", f"differences:{row}", i) for row in range(1, 5) for i in range(2)
}
DEADLINE_S = 240.0


@pytest.fixture
def folder(tmp_path: Path, executor: ExecutorProcess) -> Path:
    save_tiny_model(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for name, sign in (("sums", "+"), ("differences", "-")):
        rows = [{"problem": f"{i} {sign} {i} = ", "answer": str(eval(f"{i} {sign} {i}"))} for i in range(4)]
        (tmp_path / f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path, executor=executor.url))
    return tmp_path


def run(folder: Path, out: str, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", str(folder / "config.toml"), "--out", str(folder / out), *arguments])
    return result.exit_code, result.output


def rows(folder: Path, out: str) -> dict[tuple[str, str, int], dict[str, Any]]:
    lines = (folder / out / "trajectories.jsonl").read_text().splitlines()
    found = {(row["set"], row["task_id"], row["number"]): row for row in map(json.loads, lines)}
    assert len(found) == len(lines), "no trajectory is there twice"
    return found


def kill_after(folder: Path, out: str, trajectories: int) -> None:
    path = folder / out / "trajectories.jsonl"
    deadline = time.monotonic() + DEADLINE_S
    command = [sys.executable, "-c", "from cellar_trainer.cli import main; main()"]
    arguments = ["eval", str(folder / "config.toml"), "--out", str(folder / out)]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            while not path.exists() or path.read_bytes().count(b"\n") < trajectories:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.kill()


def test_an_evaluation_that_is_killed_goes_on_and_comes_to_the_same(folder: Path) -> None:
    kill_after(folder, "killed", 5)
    with (folder / "killed/trajectories.jsonl").open("ab") as file:
        file.write(b'{"set": "sums", "task_')  # as if it had been writing
    before = (folder / "killed/trajectories.jsonl").read_bytes().rpartition(b"\n")[0] + b"\n"
    played = before.count(b"\n")
    assert 5 <= played < len(PLACES)

    status, output = run(folder, "killed")
    assert status == 0, output
    assert f"{played} trajectories are in" in output
    assert (folder / "killed/trajectories.jsonl").read_bytes().startswith(before)
    status, output = run(folder, "whole")
    assert status == 0, output

    resumed, whole = rows(folder, "killed"), rows(folder, "whole")
    assert resumed.keys() == whole.keys() == PLACES
    assert {place: row["segments"] for place, row in resumed.items()} == {
        p: row["segments"] for p, row in whole.items()
    }
    for name in ("report.json", "report.md", "settings.json"):
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    report = json.loads((folder / "whole/report.json").read_text())
    assert {name: (s["problems"], s["trajectories"], s["dropped"]) for name, s in report["sets"].items()} == {
        "sums": (4, 16, 0),
        "differences": (4, 8, 0),
    }
    assert list(report["sets"]["sums"]["estimates"]) == ["avg@4", "pass@2", "pass@4"]

    status, output = run(folder, "whole", "--n", "2")
    assert (status, "sets.sums.n is 2, was 4" in output) == (1, True)


def test_mistakes_are_one_clear_line(folder: Path) -> None:
    for arguments, status, message in (
        (["--suite", "math7"], 1, "math7: no such suite, file or folder; suites are math6"),
        (["--suite", "math6"], 1, "aime24.parquet"),
        (["--suite", "2024"], 1, "2024: no such suite, file or folder"),
        (["--suite", "math6", "--data", "2026-11-21"], 1, "2026-11-21/aime24.parquet"),
        (["--n", "0"], 2, "Invalid value for '--n'"),
    ):
        found, output = run(folder, "none", *arguments)
        assert (found, message in output, "Traceback" in output) == (status, True, False), output
    assert not (folder / "none").exists()


def test_a_folder_in_which_nothing_could_be_played_is_free_for_other_settings(folder: Path) -> None:
    status, output = run(folder, "out", "executor.url=http://127.0.0.1:9")
    assert (status, "127.0.0.1" in output) == (1, True)
    status, output = run(folder, "out", "--limit", "1", "--n", "1")
    assert status == 0, output
    assert rows(folder, "out").keys() == {("sums", "sums:1", 0), ("differences", "differences:1", 0)}


def test_weights_that_change_end_an_evaluation_and_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = iter(["7", "8", "8", "7", "7"])

    async def label(config: Config) -> str:
        return next(labels)

    monkeypatch.setattr("cellar_trainer.wiring.weight_label", label)
    for status, message in (
        (1, "the policy's weights became 8 in the middle, and were 7"),
        (1, "policy.weights is 8, was 7"),
        (0, "24 trajectories are in"),
    ):
        found, output = run(folder, "out")
        assert (found, message in output) == (status, True), output
    assert "weights 7, temperature" in (folder / "out/report.md").read_text()

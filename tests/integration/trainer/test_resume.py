"""A training run that is killed and resumed is the run that was not: real processes, kill -9, a real executor."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.executor_process import ExecutorProcess
from tests.integration.trainer.test_train_commands import configure, lines
from tests.tiny_model import save_tiny_model

STEPS = 4
PATIENCE_S = 300.0


def train(config: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    changes = [f"output={output}", f"train.steps={STEPS}", "train.checkpoint_every=1", "train.overlap=between"]
    # Rewards by chance do not come from an untrained model: it is the decay that moves the weights.
    changes += ["optimiser.weight_decay=1.0"]
    command = [sys.executable, "-m", "cellar_trainer", "train", str(config), *changes, *more]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def wait_for_steps(run: subprocess.Popen[bytes], metrics: Path, steps: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert run.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def untimed(path: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in lines(path)]


def test_killed_and_resumed_with_trajectories_sampled_ahead(tmp_path: Path, executor: ExecutorProcess) -> None:
    config = configure(tmp_path, executor.url, save_tiny_model(tmp_path / "model"))
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    uninterrupted = train(config, whole)
    first = train(config, halves)
    wait_for_steps(first, halves / "metrics.jsonl", 2)
    first.kill()
    assert first.wait() != 0
    checkpoints = sorted(path.name for path in (halves / "checkpoints").glob("step-*"))
    assert f"step-{STEPS:06d}" not in checkpoints, "it was killed too late to show anything"
    assert (halves / "checkpoints" / checkpoints[-1] / "ahead.json").exists()

    assert train(config, halves, "--resume").wait(PATIENCE_S) == 0
    assert uninterrupted.wait(PATIENCE_S) == 0

    end = f"checkpoints/step-{STEPS:06d}/model.safetensors"
    assert (whole / end).read_bytes() == (halves / end).read_bytes()
    start = load_file(tmp_path / "model/model.safetensors")
    assert any((start[name] != weight).any() for name, weight in load_file(whole / end).items())
    assert untimed(whole / "metrics.jsonl") == untimed(halves / "metrics.jsonl")
    assert lines(whole / "trajectories.jsonl") == lines(halves / "trajectories.jsonl")
    progress = [json.loads((run / end).with_name("progress.json").read_text()) for run in (whole, halves)]
    assert progress[0]["stream_position"] == progress[1]["stream_position"]

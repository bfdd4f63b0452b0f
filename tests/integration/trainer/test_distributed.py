"""Two processes train as one does: the same steps, the same checkpoints. Over gloo, on the CPU."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.executor_process import ExecutorProcess
from tests.integration.trainer.ranks import VARIANTS, finish, open_learner, play, resume
from tests.integration.trainer.test_train_commands import configure
from tests.tiny_model import save_tiny_model

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}


@dataclass(frozen=True, slots=True)
class Played:
    alone: Path
    together: Path
    exits: list[tuple[int, str]]
    """Of each rank, its exit status and what it printed."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """All that `ranks` has two processes do, and the same in this one; once, since starting takes longest."""
    folder = tmp_path_factory.mktemp("ranks")
    alone, together = folder / "alone", folder / "together"
    with one_thread():
        for name, options in VARIANTS.items():
            play(open_learner(**options), alone / name)
    return Played(alone, together, launch(together, alone))


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def launch(*arguments: Path) -> list[tuple[int, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.trainer.ranks", *map(str, arguments)],
            env={**rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def assert_same(actual: Path, expected: Path) -> None:
    ours, theirs = (torch.load(folder / "seen.pt") for folder in (actual, expected))
    for ours_of_step, theirs_of_step in zip(ours["metrics"][::-1], theirs["metrics"][::-1], strict=False):
        assert ours_of_step == pytest.approx(theirs_of_step, rel=1e-5, abs=1e-7)
    assert ours["score"] == pytest.approx(theirs["score"], rel=1e-5)
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, weight in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], weight, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_make_the_steps_of_one(played: Played, variant: str) -> None:
    assert (played.together / variant / "seen.pt").exists(), played.exits
    assert_same(played.together / variant, played.alone / variant)


@pytest.mark.parametrize("variant", ["untied", "lora"])
def test_a_checkpoint_of_one_process_goes_on_in_two_and_the_other_way_round(
    played: Played, tmp_path: Path, variant: str
) -> None:
    assert_same(played.together / f"{variant}-resumed", played.alone / variant)
    with one_thread():
        finish(resume(played.together / variant, **VARIANTS[variant]), tmp_path)
    assert_same(tmp_path, played.alone / variant)


def test_commands_are_waited_for_longer_than_a_collective_and_a_lost_process_ends_the_others(played: Played) -> None:
    assert [path.name for path in sorted(played.together.glob("waited-*"))] == ["waited-0", "waited-1"], played.exits
    status, output = played.exits[1]
    assert (status, "RankLost: the first process of the run is gone" in output) == (1, True), output


def test_a_run_under_torchrun(tmp_path: Path, executor: ExecutorProcess) -> None:
    config = configure(tmp_path, executor.url, save_tiny_model(tmp_path / "model"))
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cellar_trainer", "train"]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(config), "lora.rank=2", "reward.overlong=score"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    metrics = tmp_path / "run/metrics.jsonl"
    rows: list[dict[str, Any]] = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2], "one log, of one run"
    assert max(row["mismatch"] for row in rows) < 1e-5, "the policy follows the weights of both"
    assert (tmp_path / "run/checkpoints/step-000002/model.safetensors").exists()

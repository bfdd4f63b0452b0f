"""The commands from end to end: real executor, a policy in the process or in a real vLLM."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from cellar_trainer import cli
from cellar_trainer.learning.model import load_model
from cellar_trainer.serving import VLLMServer
from tests.executor_process import ExecutorProcess
from tests.tiny_model import save_tiny_model

BASE = """
output = "{output}"
[model]
path = "{model}"
[tasks]
path = "{tasks}"
[executor]
url = "{executor}"
[policy]
kind = "{kind}"
url = "{url}"
max_difference = 1e-3
[rendering]
chat_template = false
prompt = "{{problem}}"
[rollout]
max_turn_tokens = 12
max_context_tokens = 200
[collect]
tasks = 2
siblings = 2
[optimiser]
learning_rate = 1e-3
[train]
steps = 2
masked_stop_reasons = []
"""


def configure(folder: Path, executor: str, model: Path, *, kind: str = "local", url: str = "http://unused") -> Path:
    tasks = folder / "tasks.jsonl"
    rows = [{"id": f"t{i}", "problem": f"{i} + {i} = ", "answer": str(2 * i), "source": "sums"} for i in range(3)]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"output": folder / "run", "model": model, "tasks": tasks, "executor": executor, "kind": kind, "url": url}
    path = folder / "config.toml"
    path.write_text(BASE.format(**values))
    return path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def config(tmp_path: Path, executor: ExecutorProcess) -> Path:
    return configure(tmp_path, executor.url, save_tiny_model(tmp_path / "model"))


def test_training_resuming_and_refusing_to_mix_runs(config: Path) -> None:
    output = config.parent / "run"
    first = command("train", config)
    assert first.exit_code == 0, first.output
    assert [row["step"] for row in lines(output / "metrics.jsonl")] == [1, 2]
    assert len(lines(output / "trajectories.jsonl")) == 8

    again = command("train", config)
    assert (again.exit_code, "holds a run already" in again.output) == (2, True)

    more = command("train", config, "train.steps=3", "--resume")
    assert more.exit_code == 0, more.output
    assert [row["step"] for row in lines(output / "metrics.jsonl")] == [1, 2, 3]
    assert (output / "checkpoints/step-000003/config.json").exists()


def test_rollouts_of_every_problem_are_kept_in_order(config: Path) -> None:
    folder = config.parent
    played = command("rollout", config, "--tasks", folder / "tasks.jsonl", "--out", folder / "p.jsonl", "--n", 2)
    assert played.exit_code == 0, played.output
    assert [row["task"]["task_id"] for row in lines(folder / "p.jsonl")] == ["t0", "t0", "t1", "t1", "t2", "t2"]
    assert '"trajectories": 6.0' in played.output


def test_a_dry_run_says_what_would_be_done_and_starts_nothing(config: Path) -> None:
    shown = command("train", config, "--dry-run", "executor.url=http://127.0.0.1:9")
    assert shown.exit_code == 0, shown.output
    for word in ("2 tasks x 2 siblings = 4 trajectories", "ih_grpo", "memory: optimiser", "GiB"):
        assert word in shown.output
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ("train.stepz=1", 2, "train.stepz: no such key; did you mean train.steps?"),
        ("tasks.path=none.jsonl", 1, "none.jsonl"),
        ("model.trigger=xyz", 1, "the trigger 'xyz' is 3 tokens"),
        ("executor.url=http://127.0.0.1:9", 1, "127.0.0.1"),
        ("policy.kind=vllm", 1, "no answer from the model server"),
    ],
)
def test_a_mistake_is_one_clear_line(config: Path, change: str, status: int, message: str) -> None:
    failed = command("train", config, change, "policy.url=http://127.0.0.1:9")
    assert failed.exit_code == status, failed.output
    assert message in failed.output
    assert "Traceback" not in failed.output


def test_help_answers_without_loading_torch() -> None:
    script = "import sys\nfrom cellar_trainer.cli import app\ntry: app(['-h'])\nfinally: print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.rstrip().endswith("False")
    assert "rollouts with deferred cells" in shown.stdout


@pytest.mark.vllm
def test_training_with_a_real_vllm(tmp_path: Path, executor: ExecutorProcess, vllm_server: VLLMServer) -> None:
    config = configure(tmp_path, executor.url, vllm_server.model_dir, kind="vllm", url=vllm_server.url)
    # An untrained model earns nothing to learn from: it is the decay that moves the weights.
    result = command("train", config, "optimiser.weight_decay=1.0", "reward.overlong=score")
    assert result.exit_code == 0, result.output
    first, second = lines(tmp_path / "run/metrics.jsonl")
    assert (first["policy_staleness"], second["policy_staleness"]) == (0, 0)
    assert max(first["mismatch"], second["mismatch"]) < 1e-3, "the sampler and the trainer are the same function"
    assert max(first["publish_difference"], second["publish_difference"]) < 1e-3
    start = load_model(vllm_server.model_dir, dtype="float32", device="cpu").state_dict()
    end = load_model(tmp_path / "run/checkpoints/step-000002", dtype="float32", device="cpu").state_dict()
    assert not torch.equal(start["model.embed_tokens.weight"], end["model.embed_tokens.weight"])

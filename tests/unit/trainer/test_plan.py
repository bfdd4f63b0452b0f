from pathlib import Path

import pytest

from cellar_trainer.config import Config, parse_config
from cellar_trainer.plan import plan
from tests.tiny_model import save_tiny_model


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({}, "ih_grpo on dapo, f exact, weight 1, mean over token"),
        ({"preset": "released", "base": "grpo"}, "ih_grpo on grpo, f none, weight 0.001, mean over sequence"),
        ({"name": "dr_grpo"}, "dr_grpo, mean over constant"),
        ({"name": "eh_grpo"}, "eh_grpo on dapo, mean over token"),
    ],
)
def test_the_plan_says_what_will_be_minimised(tmp_path: Path, objective: dict[str, object], said: str) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"task_id": "a", "problem": "1+1", "answer": "2"}\n')
    model = {"path": str(save_tiny_model(tmp_path / "model"))}
    tables = {"output": "o", "model": model, "tasks": {"path": str(tasks)}, "policy": {"kind": "local"}}
    assert dict(plan(parse_config({**tables, "objective": objective})))["objective"] == said


def config(tmp_path: Path, **sections: object) -> Config:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"task_id": "a", "problem": "1+1", "answer": "2"}\n')
    model = {"path": str(save_tiny_model(tmp_path / "model")), **sections.pop("model", {})}  # type: ignore[dict-item]
    return parse_config({"output": "o", "model": model, "tasks": {"path": str(tasks)}, **sections})


def test_the_plan_says_what_is_trained_and_for_how_many_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows = dict(plan(config(tmp_path, lora={"rank": 4}, model={"activation_checkpointing": True})))
    assert rows["trained"] == "LoRA adapters of rank 4, arithmetic in float32, activations computed twice"
    assert rows["memory: all, on cpu, each of 2 processes"].endswith("GiB (estimate)")

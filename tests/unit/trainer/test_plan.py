from pathlib import Path

import pytest

from cellar_trainer.config import parse_config
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

"""What is measured, and the files it is kept in."""

import json
from pathlib import Path

import pytest

from cellar_trainer.metrics import RunLog, deferral_rate, rollout_metrics
from cellar_trainer.rendering import Renderer, RenderingOptions
from cellar_trainer.types import Segment, SegmentKind, StopReason, Task, Trajectory
from tests.tiny_model import tiny_tokenizer

RENDERER = Renderer(tiny_tokenizer(), RenderingOptions(chat_template=False))


def trajectory(
    reward: float, *, runs: int = 0, deferred: int = 0, stop: StopReason = StopReason.ANSWERED
) -> Trajectory:
    segments = [Segment(SegmentKind.PROMPT, (70, 71)), Segment(SegmentKind.SAMPLED, (72,), (-1.0,), (-2.0,), (4,))]
    return Trajectory(
        Task("t", "p", "1"), segments, stop, reward=reward, runs=runs, cells=runs + deferred, deferred_cells=deferred
    )


def test_the_deferral_rate_is_of_the_batch_not_the_mean_of_its_trajectories() -> None:
    assert deferral_rate([trajectory(1, runs=1, deferred=3), trajectory(0, runs=4)]) == 3 / 8
    assert deferral_rate([trajectory(0)]) == 0.0


def test_rollout_metrics() -> None:
    metrics = rollout_metrics([trajectory(1, runs=1, deferred=1), trajectory(0, stop=StopReason.VOID)])
    assert metrics["reward_mean"] == 0.5
    assert metrics["deferral_rate"] == 0.5
    assert metrics["runs_per_trajectory"] == 0.5
    assert (metrics["stop/answered"], metrics["stop/void"], metrics["stop/deadline"]) == (0.5, 0.5, 0.0)
    assert (metrics["trajectories"], metrics["tokens_sampled"], metrics["tokens_per_trajectory"]) == (2, 2, 3)
    assert rollout_metrics([]) == {}


def test_a_step_and_its_trajectories_are_on_disk_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, RENDERER) as log:
        log.step(1, {"loss": 0.5})
        log.trajectories(1, [trajectory(1.0, runs=1)])
        assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}
        record = json.loads((tmp_path / "trajectories.jsonl").read_text())
    assert (record["step"], record["reward"], record["stop_reason"], record["runs"]) == (1, 1.0, "answered", 1)
    assert record["policy_versions"] == [4, 4]
    assert [segment["kind"] for segment in record["segments"]] == ["prompt", "sampled"]
    assert record["segments"][1]["token_ids"] == [72]
    assert record["segments"][1]["text"] == RENDERER.text([72])
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("cut", ["", '{"step": 2, "lo'])
def test_a_resumed_log_has_no_line_of_a_step_that_comes_again(tmp_path: Path, cut: str) -> None:
    with RunLog(tmp_path, RENDERER) as log:
        for step in (1, 2, 3):
            log.step(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(cut)
    with RunLog(tmp_path, RENDERER, steps_done=1) as log:
        log.step(2, {"loss": 20.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 1}, {"step": 2, "loss": 20.0}]

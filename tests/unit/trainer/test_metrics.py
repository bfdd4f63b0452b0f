"""What is measured, and the files it is kept in."""

import json
from pathlib import Path

import pytest

from cellar_trainer.rollouts.rendering import Renderer, RenderingOptions
from cellar_trainer.telemetry.metrics import RunLog, deferral_rate, rollout_metrics, staleness_metrics
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
    assert (metrics["reward_min"], metrics["reward_max"]) == (0, 1)
    assert rollout_metrics([]) == {}


def test_counts_are_shown_with_their_spread() -> None:
    metrics = rollout_metrics([trajectory(0, runs=runs) for runs in [*range(20, 0, -1), 99]])
    names = ("runs_per_trajectory", "runs_per_trajectory_p50", "runs_per_trajectory_p95", "runs_per_trajectory_max")
    assert [metrics[name] for name in names] == [(210 + 99) / 21, 11, 20, 99]
    one = rollout_metrics([trajectory(0, runs=3)])
    assert [one[name] for name in names] == [3, 3, 3, 3]


def test_each_outcome_of_the_grading_has_its_share() -> None:
    trajectories = [trajectory(1), trajectory(0), trajectory(0), trajectory(0)]
    for played, grade in zip(trajectories, ("correct", "wrong", "wrong", "no_answer"), strict=True):
        played.grade = grade
    metrics = rollout_metrics(trajectories)
    assert {name: share for name, share in metrics.items() if name.startswith("grade/")} == {
        **{"grade/correct": 0.25, "grade/wrong": 0.5, "grade/no_answer": 0.25},
        **{"grade/unparsed": 0.0, "grade/timeout": 0.0},
    }


def test_staleness_is_the_age_of_tokens_not_of_trajectories() -> None:
    fresh, mixed, nothing = trajectory(1), trajectory(1), Trajectory(Task("t", "p", "1"))
    mixed.segments.append(Segment(SegmentKind.SAMPLED, (7, 8, 9), (-1.0,) * 3, (-2.0,) * 3, (1, 1, 3)))
    metrics = staleness_metrics([fresh, mixed, nothing], 4)
    assert metrics == {"policy_staleness": (0 + 0 + 3 + 3 + 1) / 5, "policy_staleness_max": 3.0}
    assert staleness_metrics([nothing], 4) == {}


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


def test_no_character_that_a_model_writes_ends_a_line(tmp_path: Path) -> None:
    """`str.splitlines` also splits at these, and half a surrogate pair has no encoding."""
    with RunLog(tmp_path, RENDERER) as log:
        played = trajectory(1.0)
        played.answer = "a\u2028b\u2029c\x85d\ud800"
        log.trajectories(1, [played])
        log.trajectories(2, [played])
    with RunLog(tmp_path, RENDERER, steps_done=1):
        pass
    (row,) = (tmp_path / "trajectories.jsonl").read_text().splitlines()
    assert json.loads(row)["answer"] == played.answer


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

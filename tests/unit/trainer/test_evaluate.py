"""Evaluation counts every problem, and its estimates are the known ones."""

from itertools import combinations
from math import comb
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_trainer.collect import OnDone, Rollouts
from cellar_trainer.evaluate import evaluate, pass_at_k
from cellar_trainer.types import StopReason, Task, Trajectory


class Played:
    """Plays by a table: task -> reward of each sample, None where a service failed."""

    def __init__(self, table: dict[str, list[float | None]]) -> None:
        self.seeds: list[int] = []
        self._left = {task: list(rewards) for task, rewards in table.items()}

    async def play(self, jobs: list[tuple[Task, int]], *, on_done: OnDone | None = None) -> list[Trajectory | None]:
        self.seeds += [seed for _, seed in jobs]
        rewards = [(task, self._left[task.task_id].pop(0)) for task, _ in jobs]
        return [
            None if reward is None else Trajectory(task, stop_reason=StopReason.ANSWERED, reward=reward)
            for task, reward in rewards
        ]


TASKS = [Task("a", "", "", "easy"), Task("b", "", "", "hard"), Task("c", "", "", "hard")]


async def test_every_problem_is_graded_or_counted_as_dropped() -> None:
    played = Played({"a": [1, 1], "b": [1, None], "c": [None, None]})
    evaluation = await evaluate(TASKS, cast(Rollouts, played), samples=2, seed=0)
    overall, sources = evaluation.report["overall"], evaluation.report["by_source"]
    assert (overall["problems"], overall["problems_without_any"], overall["trajectories_dropped"]) == (3, 1, 3)
    assert (overall["avg@2"], overall["pass@1"], overall["pass@2"]) == (1.0, 1.0, 1.0)
    assert (sources["easy"]["problems"], sources["hard"]["problems"]) == (1, 2)
    assert len(evaluation.trajectories) == 3
    assert len(set(played.seeds)) == 6


async def test_averages_are_over_problems() -> None:
    played = Played({"a": [1, 0, 0, 0], "b": [1, 1, 0, 0], "c": [0, 0, 0, 0]})
    report = (await evaluate(TASKS, cast(Rollouts, played), samples=4, seed=0)).report["overall"]
    assert report["avg@4"] == pytest.approx((0.25 + 0.5 + 0) / 3)
    assert report["pass@4"] == pytest.approx(2 / 3)
    assert report["pass@2"] == pytest.approx((0.5 + 5 / 6 + 0) / 3)


async def test_a_source_whose_every_rollout_was_dropped_has_no_score() -> None:
    played = Played({"a": [None], "b": [1], "c": [0]})
    report = (await evaluate(TASKS, cast(Rollouts, played), samples=1, seed=0)).report
    assert report["by_source"]["easy"]["avg@1"] is None
    assert report["by_source"]["easy"]["pass@1"] is None
    assert report["overall"]["avg@1"] == 0.5


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_correct_one(samples: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    marks = [True] * correct + [False] * (samples - correct)
    hits = sum(any(choice) for choice in combinations(marks, k))
    assert pass_at_k(samples, correct, k) == pytest.approx(hits / comb(samples, k))

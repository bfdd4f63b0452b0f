"""Every trajectory of a suite is played once, and nothing that is there already."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from cellar_trainer.evaluation.play import Sample, evaluate
from cellar_trainer.evaluation.suites import TaskSet
from cellar_trainer.rollouts.collect import Rollouts
from cellar_trainer.rollouts.rollout import RolloutFailed
from cellar_trainer.types import StopReason, Task, Trajectory

TASKS = tuple(Task(name, "", "") for name in "ab")
SETS = [TaskSet("first", TASKS, 2), TaskSet("second", TASKS[:1], 1)]
PLACES = [("first", "a", 0), ("first", "a", 1), ("first", "b", 0), ("first", "b", 1), ("second", "a", 0)]


@dataclass
class Played:
    """Rollouts that end at once, in reverse order; those of the tasks in `failing` fail."""

    failing: str = ""
    concurrency: int = 8
    seeds: list[int] = field(default_factory=list)

    async def play_one(self, task: Task, seed: int, slots: asyncio.Semaphore) -> Trajectory | RolloutFailed:
        self.seeds.append(seed)
        for _ in range(10 - len(self.seeds)):
            await asyncio.sleep(0)
        if task.task_id in self.failing:
            return RolloutFailed("away", "executor")
        return Trajectory(task, stop_reason=StopReason.ANSWERED, correct=True, grade="correct", runs=1)


async def play(played: Played, **options: Any) -> list[Sample]:
    return await evaluate(SETS, cast(Rollouts, played), seed=1, **options)


async def test_samples_come_in_the_order_of_the_suite_and_are_handed_over_as_they_end() -> None:
    kept: list[Sample] = []
    counted: list[tuple[int, int]] = []
    samples = await play(
        Played(), keep=lambda sample, _: kept.append(sample), on_done=lambda *count: counted.append(count)
    )
    assert [sample.place for sample in samples] == PLACES
    assert [sample.place for sample in kept] == PLACES[::-1]
    assert counted == [(done, 5) for done in range(1, 6)]


async def test_only_what_is_missing_is_played_with_the_seeds_that_it_would_have_had() -> None:
    whole, rest = Played(), Played()
    samples = await play(whole)
    counted: list[tuple[int, int]] = []
    again = await play(rest, done=samples[1:4], on_done=lambda *count: counted.append(count))
    assert again == samples
    assert rest.seeds == [whole.seeds[0], whole.seeds[4]]
    assert counted == [(4, 5), (5, 5)]
    assert len(set(whole.seeds)) == 5


async def test_what_a_service_failed_is_missing_and_nothing_else() -> None:
    samples = await play(Played(failing="a"))
    assert [sample.place for sample in samples] == PLACES[2:4]


async def test_when_every_rollout_fails_nothing_was_measured() -> None:
    with pytest.raises(RolloutFailed, match="all 5 rollouts failed, the first: away"):
        await play(Played(failing="ab"))
    done = await play(Played())
    with pytest.raises(RolloutFailed, match="all 2 rollouts failed"):
        await play(Played(failing="ab"), done=done[:3])
    assert await play(Played(failing="ab"), done=done) == done

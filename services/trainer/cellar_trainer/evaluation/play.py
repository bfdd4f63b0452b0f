"""Plays the problems of a suite: every missing trajectory once, side by side, each handed over as it ends."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cellar_trainer.evaluation.suites import TaskSet
from cellar_trainer.rollouts.collect import OnDone, Rollouts, tasks_together
from cellar_trainer.rollouts.rollout import RolloutFailed, derive_seed
from cellar_trainer.types import Task, Trajectory

Place: TypeAlias = tuple[str, str, int]
"""Which trajectory of an evaluation one is: its set, its task's id, and its number, from 0."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What an evaluation counts of one trajectory."""

    set: str
    task_id: str
    number: int
    correct: bool
    grade: str
    stop_reason: str
    runs: int
    cells: int
    deferred_cells: int
    unrun_cells: int
    tokens: int
    """Of the whole context, observations included."""

    @property
    def place(self) -> Place:
        return self.set, self.task_id, self.number

    @classmethod
    def of(cls, place: Place, trajectory: Trajectory) -> "Sample":
        assert trajectory.stop_reason is not None, "it has ended"
        assert trajectory.grade is not None, "it has been graded"
        return cls(
            *place,
            correct=bool(trajectory.correct),
            grade=trajectory.grade,
            stop_reason=trajectory.stop_reason.value,
            runs=trajectory.runs,
            cells=trajectory.cells,
            deferred_cells=trajectory.deferred_cells,
            unrun_cells=trajectory.unrun_cells,
            tokens=len(trajectory.token_ids),
        )


Keep = Callable[[Sample, Trajectory], None]


async def evaluate(
    sets: Sequence[TaskSet],
    rollouts: Rollouts,
    *,
    seed: int,
    done: Collection[Sample] = (),
    keep: Keep | None = None,
    on_done: OnDone | None = None,
) -> list[Sample]:
    """Play what is not in `done`, and give all there is then. A rollout that a service failed is in neither.

    What a trajectory is depends on the seed and its place, not on what is played beside it. `keep` is called with each
    as soon as it has been graded. Raises `RolloutFailed` when every rollout failed.
    """
    places = list(_places(sets))
    finished = {sample.place: sample for sample in done}
    missing = [(place, task) for place, task in places if place not in finished]
    slots = asyncio.Semaphore(rollouts.concurrency)
    failures: list[RolloutFailed] = []

    async def play(place: Place, task: Task) -> None:
        trajectory = await rollouts.play_one(task, derive_seed(seed, "eval", *place), slots)
        if isinstance(trajectory, RolloutFailed):
            failures.append(trajectory)
        else:
            sample = finished[place] = Sample.of(place, trajectory)
            if keep is not None:
                keep(sample, trajectory)
        if on_done is not None:
            on_done(len(finished) + len(failures), len(places))

    async with tasks_together() as together:
        for place, task in missing:
            together.create_task(play(place, task))
    if failures and len(failures) == len(missing):
        raise RolloutFailed(f"all {len(missing)} rollouts failed, the first: {failures[0]}", failures[0].fault)
    return [finished[place] for place, _ in places if place in finished]


def _places(sets: Sequence[TaskSet]) -> Iterator[tuple[Place, Task]]:
    for task_set in sets:
        for task in task_set.tasks:
            for number in range(task_set.n):
                yield (task_set.name, task.task_id, number), task

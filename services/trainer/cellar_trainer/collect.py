"""Many rollouts at once, as groups: tasks in, graded groups out, with every loss on the way counted.

Between the single trajectory (`rollout`) and the step (`train`). All siblings of all tasks run side by side; none waits
for another, and the deadline inside each rollout bounds the slowest.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from cellar_client import AsyncCellar
from cellar_trainer.policy.protocol import Policy
from cellar_trainer.rendering import Renderer
from cellar_trainer.rewards import Grader, GraderUnavailable, Outcome
from cellar_trainer.rollout import RolloutFailed, RolloutOptions, derive_seed, rollout
from cellar_trainer.types import Group, Task, Trajectory

_log = logging.getLogger(__name__)

DROPPED = ("rollouts", "groups_small", "groups_equal")
"""Why trajectories are missing: a service failed the rollout; too few of a group are left; its rewards are equal."""

OnDone = Callable[[int, int], None]
"""Called with (finished, all) whenever a rollout finishes."""


class Draw(NamedTuple):
    """A task as it was drawn; the number keeps seeds and groups apart when the task comes again."""

    number: int
    task: Task


class TaskStream:
    """All tasks for ever, in a new random order each epoch. `position` is its whole state."""

    def __init__(self, tasks: Sequence[Task], *, seed: int, position: int = 0) -> None:
        self.position = position
        self._tasks = tasks
        self._seed = seed

    def take(self, count: int) -> list[Draw]:
        draws = [Draw(number, self._task(number)) for number in range(self.position, self.position + count)]
        self.position += count
        return draws

    def _task(self, number: int) -> Task:
        epoch, place = divmod(number, len(self._tasks))
        order = list(range(len(self._tasks)))
        Random(derive_seed(self._seed, "epoch", epoch)).shuffle(order)
        return self._tasks[order[place]]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Everything that rollouts share, and how many of them run at once."""

    policy: Policy
    cellar: AsyncCellar
    renderer: Renderer
    grader: Grader
    options: RolloutOptions
    concurrency: int

    async def play(self, jobs: Sequence[tuple[Task, int]], *, on_done: OnDone | None = None) -> list[Trajectory | None]:
        """One graded trajectory for each task and seed, in their order; None where a service failed.

        Raises `RolloutFailed` when all failed: then nothing was learned about the policy, and somebody has to look.
        """
        slots = asyncio.Semaphore(self.concurrency)
        failures: list[RolloutFailed] = []
        done = 0

        async def one(task: Task, seed: int) -> Trajectory | None:
            nonlocal done
            async with slots:
                try:
                    return await self._graded(task, seed)
                except RolloutFailed as failure:
                    _log.warning("dropped: %s", failure)
                    failures.append(failure)
                    return None
                finally:
                    done += 1
                    if on_done is not None:
                        on_done(done, len(jobs))

        async with asyncio.TaskGroup() as together:
            running = [together.create_task(one(task, seed)) for task, seed in jobs]
        if failures and len(failures) == len(jobs):
            raise RolloutFailed(f"all {len(jobs)} rollouts failed, the first: {failures[0]}") from failures[0]
        return [r.result() for r in running]

    async def _graded(self, task: Task, seed: int) -> Trajectory:
        trajectory = await rollout(task, self.policy, self.cellar, self.renderer, self.options, seed=seed)
        try:
            grade = await self.grader.grade(trajectory.answer, task.answer)
        except GraderUnavailable as error:
            raise RolloutFailed(f"{task.task_id}: {error}") from error
        trajectory.reward = float(grade.correct)
        return trajectory


@dataclass(frozen=True, slots=True)
class CollectOptions:
    tasks: int = 16
    """Groups wanted."""
    siblings: int = 8
    min_siblings: int = 2
    """A group with fewer that survived is dropped: it has nothing to be compared with."""
    dynamic_sampling: bool = False
    """Drop groups of equal rewards, which carry no signal."""
    max_refills: int = 0
    """How often dropped groups are replaced by groups of new tasks."""


@dataclass(slots=True)
class Collection:
    groups: list[Group] = field(default_factory=list)
    """To learn from."""
    trajectories: list[Trajectory] = field(default_factory=list)
    """All that finished, those of dropped groups too: what the policy did."""
    dropped: Counter[str] = field(default_factory=Counter)
    """How many, by `DROPPED`."""
    grades: Counter[Outcome] = field(default_factory=Counter)
    """How the answers were graded, those that could not be read included."""


async def collect(
    stream: TaskStream,
    rollouts: Rollouts,
    options: CollectOptions,
    *,
    seed: int,
    on_done: OnDone | None = None,
) -> Collection:
    """Play the next tasks of `stream` until enough groups have come together, or the refills are used up."""
    collection = Collection()
    graded_before = rollouts.grader.counts.copy()
    for _ in range(1 + options.max_refills):
        draws = stream.take(options.tasks - len(collection.groups))
        jobs = [
            (task, derive_seed(seed, number, task.task_id, sibling))
            for number, task in draws
            for sibling in range(options.siblings)
        ]
        played = await rollouts.play(jobs, on_done=on_done)
        for row, draw in enumerate(draws):
            siblings = played[row * options.siblings : (row + 1) * options.siblings]
            _add(collection, draw, siblings, options)
    collection.grades = rollouts.grader.counts - graded_before
    return collection


def _add(collection: Collection, draw: Draw, siblings: Sequence[Trajectory | None], options: CollectOptions) -> None:
    survivors = [trajectory for trajectory in siblings if trajectory is not None]
    collection.trajectories += survivors
    collection.dropped["rollouts"] += len(siblings) - len(survivors)
    if len(survivors) < options.min_siblings:
        collection.dropped["groups_small"] += 1
    elif options.dynamic_sampling and len({trajectory.reward for trajectory in survivors}) == 1:
        collection.dropped["groups_equal"] += 1
    else:
        collection.groups.append(Group(f"{draw.number}:{draw.task.task_id}", survivors))

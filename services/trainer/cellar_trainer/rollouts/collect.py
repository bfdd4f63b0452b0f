"""Many rollouts at once, as groups: tasks in, graded groups out, with every loss on the way counted.

Between the single trajectory (`rollout`) and the step (`train`). All siblings of all tasks run side by side; none waits
for another, and the deadline inside each rollout bounds the slowest. As soon as a group turns out to be of no use the
next task is started.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import Field

from cellar_client import AsyncCellar
from cellar_trainer.policy.protocol import Policy
from cellar_trainer.rewards.grader import Grader, GraderUnavailable
from cellar_trainer.rewards.shaping import RewardOptions, shaped_reward
from cellar_trainer.rollouts.rendering import Renderer
from cellar_trainer.rollouts.rollout import Fault, RolloutFailed, RolloutOptions, derive_seed, rollout
from cellar_trainer.types import Group, Task, Trajectory

_log = logging.getLogger(__name__)

Flaw = Literal["groups_small", "groups_equal"]
"""Why a group is of no use: too few of its trajectories are left; all of them are right, or all wrong."""

DROPPED: tuple[str, ...] = (*(f"rollouts_{fault}" for fault in get_args(Fault)), *get_args(Flaw))
"""Why trajectories are missing: who failed their rollout, or what is wrong with their group."""

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
    reward: RewardOptions = field(default_factory=RewardOptions)

    async def play(self, jobs: Sequence[tuple[Task, int]], *, on_done: OnDone | None = None) -> list[Trajectory | None]:
        """One graded trajectory for each task and seed, in their order; None where a service failed.

        Raises `RolloutFailed` when all failed: then nothing was learned about the policy, and somebody has to look.
        """
        slots = asyncio.Semaphore(self.concurrency)
        done = 0

        async def one(task: Task, seed: int) -> Trajectory | RolloutFailed:
            nonlocal done
            result = await self.play_one(task, seed, slots)
            done += 1
            if on_done is not None:
                on_done(done, len(jobs))
            return result

        async with tasks_together() as together:
            running = [together.create_task(one(task, seed)) for task, seed in jobs]
        results = [r.result() for r in running]
        _raise_if_all_failed(results)
        return [None if isinstance(result, RolloutFailed) else result for result in results]

    async def play_one(
        self, task: Task, seed: int, slots: asyncio.Semaphore, *, oldest_version: int = 0
    ) -> Trajectory | RolloutFailed:
        """A graded trajectory, or why there is none. Its slot is free as soon as it has been played."""
        try:
            async with self.options.notebook(self.cellar, seed=seed) as notebook:
                async with slots:
                    trajectory = await rollout(
                        task,
                        self.policy,
                        notebook,
                        self.renderer,
                        self.options,
                        seed=seed,
                        oldest_version=oldest_version,
                    )
                await self._grade(trajectory)
        except RolloutFailed as failure:
            _log.warning("dropped: %s", failure)
            return failure
        return trajectory

    async def _grade(self, trajectory: Trajectory) -> None:
        try:
            grade = await self.grader.grade(trajectory.answer, trajectory.task.answer)
        except GraderUnavailable as error:
            raise RolloutFailed(f"{trajectory.task.task_id}: {error}", "grader") from error
        trajectory.grade = grade.outcome
        trajectory.correct = grade.correct
        trajectory.reward = shaped_reward(trajectory, self.reward, self.options.max_context_tokens)


@dataclass(frozen=True, slots=True)
class CollectOptions:
    tasks: Annotated[int, Field(ge=1)] = 16
    """Groups wanted."""
    siblings: Annotated[int, Field(ge=1)] = 8
    """Trajectories per group."""
    min_siblings: Annotated[int, Field(ge=1)] = 2
    """A group with fewer that survived is dropped: it has nothing to be compared with."""
    dynamic_sampling: bool = False
    """Drop groups whose trajectories are all right or all wrong: they carry no signal. How their rewards are shaped
    does not matter: a policy that learns from the shape of answers that are all wrong unlearns to answer."""
    max_refills: Annotated[int, Field(ge=0)] = 0
    """Most tasks that are tried beyond `tasks`, one in the place of each dropped group."""


@dataclass(slots=True)
class Collection:
    groups: list[Group] = field(default_factory=list)
    """To learn from, in the order of their draws. Fewer than wanted, perhaps none, when the refills were used up."""
    trajectories: list[Trajectory] = field(default_factory=list)
    """All that finished, those of dropped groups too: what the policy did."""
    dropped: Counter[str] = field(default_factory=Counter)
    """How many, by `DROPPED`."""
    grades: Counter[str] = field(default_factory=Counter)
    """How many answers had each `rewards.Outcome`."""


async def collect(
    stream: TaskStream,
    rollouts: Rollouts,
    options: CollectOptions,
    *,
    seed: int,
    oldest_version: int = 0,
    on_done: OnDone | None = None,
) -> Collection:
    """Play the next tasks of `stream` until `options.tasks` groups are of use, or the refills are used up.

    There are as many tasks under way as groups are wanted and tasks are known to be of no use. So the last one that is
    started is the last one that is needed, whatever finishes first: what is played, and where the stream stands after
    it, does not depend on timing, as far as outcomes do not.

    Trajectories with a token that was sampled by weights older than `oldest_version` are dropped. Raises
    `RolloutFailed` when every rollout failed.
    """
    collecting = _Collecting(stream, rollouts, options, seed, oldest_version, on_done)
    async with tasks_together() as together:
        collecting.start(together)
    _raise_if_all_failed(collecting.results)
    collection = collecting.collection()
    if len(collection.groups) < options.tasks:
        played = len(collecting.siblings)
        _log.warning("%d groups of the %d wanted: %d tasks were played", len(collection.groups), options.tasks, played)
    return collection


class _Siblings:
    """The rollouts of one draw; None for those under way."""

    def __init__(self, draw: Draw, count: int) -> None:
        self.key = f"{draw.number}:{draw.task.task_id}"
        self.results: list[Trajectory | RolloutFailed | None] = [None] * count

    @property
    def survivors(self) -> list[Trajectory]:
        return [result for result in self.results if isinstance(result, Trajectory)]

    def flaw(self, options: CollectOptions) -> Flaw | None:
        """What is known by now to be wrong with the group."""
        failed = sum(isinstance(result, RolloutFailed) for result in self.results)
        if len(self.results) - failed < options.min_siblings:
            return "groups_small"
        outcomes = {trajectory.correct for trajectory in self.survivors}
        if options.dynamic_sampling and None not in self.results and len(outcomes) == 1:
            return "groups_equal"
        return None


@dataclass(slots=True)
class _Collecting:
    """One collection under way."""

    stream: TaskStream
    rollouts: Rollouts
    options: CollectOptions
    seed: int
    oldest_version: int
    on_done: OnDone | None
    siblings: list[_Siblings] = field(default_factory=list)
    """Of each draw that was started, in their order."""
    done: int = 0
    """Rollouts."""
    slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.rollouts.concurrency)

    def start(self, together: asyncio.TaskGroup) -> None:
        """Start what is known to be needed and was not started yet."""
        for draw in self.stream.take(self._needed() - len(self.siblings)):
            siblings = _Siblings(draw, self.options.siblings)
            self.siblings.append(siblings)
            for index in range(self.options.siblings):
                together.create_task(self._play(draw, siblings, index, together))

    @property
    def results(self) -> list[Trajectory | RolloutFailed]:
        return [result for siblings in self.siblings for result in siblings.results if result is not None]

    def collection(self) -> Collection:
        collection = Collection()
        for siblings in self.siblings:
            collection.trajectories += siblings.survivors
            if flaw := siblings.flaw(self.options):
                collection.dropped[flaw] += 1
            else:
                collection.groups.append(Group(siblings.key, siblings.survivors))
        collection.dropped.update(f"rollouts_{r.fault}" for r in self.results if isinstance(r, RolloutFailed))
        collection.grades.update(trajectory.grade for trajectory in collection.trajectories if trajectory.grade)
        return collection

    async def _play(self, draw: Draw, siblings: _Siblings, index: int, together: asyncio.TaskGroup) -> None:
        seed = derive_seed(self.seed, draw.number, draw.task.task_id, index)
        siblings.results[index] = await self.rollouts.play_one(
            draw.task, seed, self.slots, oldest_version=self.oldest_version
        )
        self.done += 1
        if self.on_done is not None:
            self.on_done(self.done, len(self.siblings) * self.options.siblings)
        self.start(together)

    def _needed(self) -> int:
        """Tasks that have to be played, as far as is known. No more when nothing but failures has come back so far."""
        flawed = sum(siblings.flaw(self.options) is not None for siblings in self.siblings)
        if flawed and not any(siblings.survivors for siblings in self.siblings):
            return len(self.siblings)
        return self.options.tasks + min(flawed, self.options.max_refills)


@asynccontextmanager
async def tasks_together() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of tasks that raises what a task raised rather than a group of it, unless that has several kinds.

    What further tasks raised is its cause.
    """
    try:
        async with asyncio.TaskGroup() as together:
            yield together
    except ExceptionGroup as group:
        first, *others = group.exceptions
        if any(type(other) is not type(first) for other in others):
            raise
        raise first from (group.derive(others) if others else first.__cause__)


def _raise_if_all_failed(results: Sequence[Trajectory | RolloutFailed]) -> None:
    failures = [result for result in results if isinstance(result, RolloutFailed)]
    if failures and len(failures) == len(results):
        first = failures[0]
        raise RolloutFailed(f"all {len(results)} rollouts failed, the first: {first}", first.fault) from first

"""Collections in time for each step, through outages and ahead of time."""

import asyncio
from typing import Any, cast

import pytest

from cellar_trainer.rollouts import supply as supply_module
from cellar_trainer.rollouts.collect import Collection, CollectOptions, Rollouts, TaskStream
from cellar_trainer.rollouts.rollout import RolloutFailed
from cellar_trainer.rollouts.supply import Supply
from cellar_trainer.telemetry.progress import Progress
from cellar_trainer.types import Task, Trajectory

TASKS = [Task(str(i), f"{i}?", "1") for i in range(8)]


class Service:
    """`collect`, told to fail the first so many times; keeps what it was asked to play, and how old it may be."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.played: list[list[str]] = []
        self.oldest: list[int] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def collect(
        self, stream: TaskStream, rollouts: Rollouts, options: CollectOptions, *, oldest_version: int, **_: Any
    ) -> Collection:
        draws = stream.take(options.tasks)
        self.played.append([draw.task.task_id for draw in draws])
        self.oldest.append(oldest_version)
        await self.go_on.wait()
        if len(self.played) <= self.failures:
            raise RolloutFailed("the executor is away", "executor")
        return Collection(trajectories=[Trajectory(draws[0].task)])


def supply(monkeypatch: pytest.MonkeyPatch, service: Service, *, patience_s: float = 60.0) -> Supply:
    monkeypatch.setattr(supply_module, "collect", service.collect)
    monkeypatch.setattr(supply_module, "OUTAGE_PAUSE_S", 0.0)
    stream = TaskStream(TASKS, seed=0)
    return Supply(stream, cast(Any, None), CollectOptions(tasks=2), Progress(), patience_s=patience_s)


class Heal:
    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1


async def test_an_outage_is_waited_for_and_the_same_tasks_are_played_again(monkeypatch: pytest.MonkeyPatch) -> None:
    service, heal = Service(failures=2), Heal()
    opened = supply(monkeypatch, service)

    collection = await opened.take(0, heal)

    assert len(collection.trajectories) == 1
    assert service.played[0] == service.played[1] == service.played[2]
    assert heal.calls == 2, "a model server that was restarted has lost its weights"
    assert opened.stream.position == 2


async def test_an_outage_that_outlasts_the_patience_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = supply(monkeypatch, Service(failures=99), patience_s=-1.0)
    with pytest.raises(RolloutFailed, match="executor is away"):
        await opened.take(0, Heal())
    assert opened.stream.position == 0, "no task is lost"


async def test_the_patience_is_for_the_outage_not_for_what_came_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(failures=1)
    service.go_on.clear()
    opened = supply(monkeypatch, service, patience_s=0.05)
    taking = asyncio.create_task(opened.take(0, Heal()))
    await asyncio.sleep(0.1)
    service.go_on.set()
    assert await taking


async def test_what_was_sampled_ahead_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(failures=0)
    opened = supply(monkeypatch, service)
    async with opened.sampling_ahead(1):
        pass
    ahead = opened.ahead

    assert await opened.take(1, Heal()) is ahead
    assert opened.ahead is None
    assert await opened.take(2, Heal()) is not ahead
    assert service.oldest == [0, 1], "weights one step older than those that learn"
    assert [*service.played[0], *service.played[1]] == [draw.task.task_id for draw in TaskStream(TASKS, seed=0).take(4)]


async def test_an_outage_while_sampling_ahead_loses_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(failures=1)
    opened = supply(monkeypatch, service)
    async with opened.sampling_ahead(1):
        pass
    assert (opened.ahead, opened.stream.position) == (None, 0)
    await opened.take(1, Heal())
    assert service.played[0] == service.played[1]


async def test_when_the_body_fails_nothing_goes_on_behind_it_and_no_task_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service(failures=0)
    service.go_on.clear()
    opened = supply(monkeypatch, service)

    async def fail_meanwhile() -> None:
        async with opened.sampling_ahead(1):
            await asyncio.sleep(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_meanwhile()
    assert len(service.played) == 1, "it had begun"
    assert len(asyncio.all_tasks()) == 1, "and has ended"
    assert (opened.ahead, opened.stream.position) == (None, 0)

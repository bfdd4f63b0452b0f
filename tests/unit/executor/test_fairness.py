"""Who runs next: never too many, nobody forgotten, tenants in turn."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_client.schemas import CreateSession, ExecuteRequest, RunRequest
from cellar_executor.errors import Refusal
from cellar_executor.ids import Ids, Ref
from cellar_executor.service import Service
from cellar_executor.tenancy import fairness
from cellar_executor.tenancy.fairness import FairQueue
from cellar_executor.tenancy.tenants import Quota, Tenants


class FixedQuotas(Tenants):
    def __init__(self, **running: int) -> None:
        super().__init__({}, Quota(sessions=1, running=1000))
        self.bounds = running

    def quota(self, tenant: str) -> Quota:
        return Quota(sessions=1, running=self.bounds.get(tenant, 1000))


class Crowd:
    """Runs in tasks of their own: each takes a slot and holds it until it is told to `end`."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.served: list[str] = []
        self.running: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def arrive(self, tenant: str, name: str = "") -> None:
        name = name or f"{tenant}{len(self.tasks)}"
        self.tasks[name] = asyncio.create_task(self._run(tenant, name))

    def end(self, name: str) -> None:
        self.running.pop(name).set()

    def cancel(self, name: str) -> None:
        self.tasks[name].cancel()

    async def _run(self, tenant: str, name: str) -> None:
        async with self.queue.slot(tenant):
            self.served.append(name)
            ended = self.running[name] = asyncio.Event()
            try:
                await ended.wait()
            finally:
                self.running.pop(name, None)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_than_the_slots_run_at_once() -> None:
    crowd = Crowd(FairQueue(FixedQuotas(), slots=2))
    for name in ("a", "b", "c"):
        crowd.arrive("t", name)
    await settle()
    assert crowd.served == ["a", "b"]
    crowd.end("b")
    await settle()
    assert crowd.served == ["a", "b", "c"]


async def test_a_tenant_at_its_bound_waits_while_others_pass() -> None:
    crowd = Crowd(FairQueue(FixedQuotas(greedy=1), slots=3))
    for name in ("g1", "g2", "g3"):
        crowd.arrive("greedy", name)
    crowd.arrive("other", "o")
    await settle()
    assert crowd.served == ["g1", "o"]
    crowd.end("g1")
    await settle()
    assert crowd.served == ["g1", "o", "g2"]


async def test_a_flood_does_not_keep_a_single_run_from_being_the_next() -> None:
    crowd = Crowd(FairQueue(FixedQuotas(), slots=1))
    for position in range(200):
        crowd.arrive("flood", f"f{position}")
    await settle()
    crowd.arrive("other", "o")
    await settle()
    crowd.end("f0")
    await settle()
    crowd.end("f1")
    await settle()
    assert crowd.served == ["f0", "f1", "o"]


async def test_tenants_take_turns_and_within_one_the_first_is_first() -> None:
    crowd = Crowd(FairQueue(FixedQuotas(), slots=1))
    for name in ("a0", "a1", "a2", "a3", "b1", "b2", "c1"):
        crowd.arrive(name[0], name)
    await settle()
    for _ in range(6):
        crowd.end(crowd.served[-1])
        await settle()
    assert crowd.served == ["a0", "a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_line_is_bounded_and_full_only_for_its_own_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "MAX_WAITING", 2)
    queue = FairQueue(FixedQuotas(), slots=1)
    crowd = Crowd(queue)
    for name in ("a", "b", "c"):
        crowd.arrive("t", name)
    await settle()
    with pytest.raises(Refusal) as refused, queue.place("t"):
        pass
    assert refused.value.code == "quota_exceeded"
    assert refused.value.retry_after_s
    with queue.place("other"):
        pass
    crowd.end("a")
    await settle()
    with queue.place("t"):
        pass


async def test_a_place_counts_while_its_run_waits_for_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "MAX_WAITING", 1)
    queue = FairQueue(FixedQuotas(), slots=1)
    with queue.place("t") as place:
        with pytest.raises(Refusal), queue.place("t"):
            pass
        async with place.slot():
            assert (queue.waiting["t"], queue.running["t"]) == (0, 1)
            with queue.place("t"):
                pass
    assert not queue.waiting
    assert not queue.running


async def test_a_run_that_is_cancelled_as_it_is_served_passes_its_slot_on() -> None:
    crowd = Crowd(FairQueue(FixedQuotas(), slots=1))
    for name in ("a", "b", "c"):
        crowd.arrive("t", name)
    await settle()
    crowd.end("a")
    await asyncio.sleep(0)  # `a` has left and `b` has the slot, but does not know it yet
    crowd.cancel("b")
    await settle()
    assert crowd.served == ["a", "c"]


async def test_a_run_that_is_cancelled_in_line_lets_the_next_one_pass_and_leaves_nothing() -> None:
    crowd = Crowd(FairQueue(FixedQuotas(), slots=1))
    for name in ("a", "b", "c", "d"):
        crowd.arrive("t", name)
    await settle()
    crowd.end("a")
    crowd.cancel("b")  # its task has not heard of it when `a` leaves
    await settle()
    assert crowd.served == ["a", "c"]
    crowd.cancel("d")
    await settle()
    assert not crowd.queue._lines
    assert not crowd.queue._turns


async def test_a_quota_that_was_raised_holds_for_who_waits_already() -> None:
    quotas = FixedQuotas(t=1)
    crowd = Crowd(FairQueue(quotas, slots=10))
    for name in ("a", "b", "c"):
        crowd.arrive("t", name)
    await settle()
    quotas.bounds["t"] = 5
    crowd.end("a")
    await settle()
    assert crowd.served == ["a", "b", "c"]


async def test_a_run_that_finds_no_place_leaves_no_cell_behind(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.create("t", CreateSession(session_id="s"), Ids.fresh())
    ref = Ref("t", "s")
    monkeypatch.setattr(fairness, "MAX_WAITING", 0)
    with pytest.raises(Refusal, match="quota_exceeded"):
        await service.run(ref, RunRequest(code="1"), Ids.fresh())
    with pytest.raises(Refusal, match="quota_exceeded"):
        await service.enqueue_run(ref, RunRequest(code="1"), Ids.fresh())
    with pytest.raises(Refusal, match="quota_exceeded"):
        await service.execute("t", ExecuteRequest(code="1"), Ids.fresh())
    assert (await service.get(ref)).cells_total == 0


async def test_who_waits_for_its_session_s_turn_holds_no_slot_and_who_runs_does(service: Service) -> None:
    await service.create("t", CreateSession(session_id="s"), Ids.fresh())
    ref, queue = Ref("t", "s"), service._runner._queue
    live = service._sessions.get(ref)
    assert live is not None
    async with live.my_turn():
        run = asyncio.create_task(service.run(ref, RunRequest(code="1"), Ids.fresh()))
        while not (await service.get(ref)).cells_total:
            pass
        await settle()
        assert (queue.waiting, queue.running) == ({"t": 1}, {})
    async with AsyncExitStack() as stack:
        for position in range(8):  # all that there are
            await stack.enter_async_context(queue.slot(f"other{position}"))
        other = asyncio.create_task(service.execute("t", ExecuteRequest(code="1"), Ids.fresh()))
        await asyncio.wait({run, other}, timeout=0.2)
        assert not run.done()
        assert not other.done()
    assert (await other).status == (await run).status == "ok"
    assert (queue.waiting, queue.running) == ({}, {})


Step = tuple[Literal["arrive", "end", "cancel", "settle"], int]
STEPS = st.lists(st.tuples(st.sampled_from(["arrive", "arrive", "end", "cancel", "settle"]), st.integers(0, 20)))
TENANTS = ("a", "b", "c")


@given(steps=STEPS, slots=st.integers(1, 4), bounds=st.tuples(*[st.integers(1, 3)] * 3))
def test_whatever_happens_no_bound_is_passed_and_no_slot_is_lost(
    steps: list[Step], slots: int, bounds: tuple[int, ...]
) -> None:
    asyncio.run(_whatever_happens(steps, slots, dict(zip(TENANTS, bounds, strict=True))))


async def _whatever_happens(steps: list[Step], slots: int, bounds: dict[str, int]) -> None:
    queue = FairQueue(FixedQuotas(**bounds), slots)
    crowd = Crowd(queue)
    for what, number in steps:
        await _step(crowd, what, number)
        assert sum(queue.running.values()) <= slots
        assert all(queue.running[tenant] <= bounds[tenant] for tenant in TENANTS)
    await settle()
    _nobody_waits_for_nothing(crowd, slots, bounds)
    for task in crowd.tasks.values():
        task.cancel()
    await asyncio.gather(*crowd.tasks.values(), return_exceptions=True)
    assert not queue.waiting
    assert not queue.running
    async with AsyncExitStack() as stack:
        for position in range(slots):  # all of them are there again
            await asyncio.wait_for(stack.enter_async_context(queue.slot(f"fresh{position}")), 1)


async def _step(crowd: Crowd, what: str, number: int) -> None:
    match what:
        case "arrive":
            crowd.arrive(TENANTS[number % 3])
        case "end" if crowd.running:
            crowd.end(list(crowd.running)[number % len(crowd.running)])
        case "cancel" if crowd.tasks:
            crowd.cancel(list(crowd.tasks)[number % len(crowd.tasks)])
        case "settle":
            await asyncio.sleep(0)


def _nobody_waits_for_nothing(crowd: Crowd, slots: int, bounds: dict[str, int]) -> None:
    running = Counter(name[0] for name in crowd.running)
    waiting = Counter(name[0] for name, task in crowd.tasks.items() if not task.done() and name not in crowd.running)
    assert crowd.queue.waiting == waiting
    assert crowd.queue.running == running
    if sum(running.values()) < slots:
        assert all(running[tenant] >= bounds[tenant] for tenant in waiting)


@given(
    before=st.lists(st.sampled_from(TENANTS), min_size=1, max_size=40),
    ends=st.lists(st.integers(0, 3), max_size=20),
    slots=st.integers(1, 4),
)
def test_one_run_waits_for_one_release_of_each_other_tenant_at_most(
    before: list[str], ends: list[int], slots: int
) -> None:
    asyncio.run(_one_waits(before, ends, slots))


async def _one_waits(before: list[str], ends: list[int], slots: int) -> None:
    crowd = Crowd(FairQueue(FixedQuotas(), slots))
    for tenant in before:
        crowd.arrive(tenant)
    await settle()
    for number in ends:
        if crowd.running:
            crowd.end(list(crowd.running)[number % len(crowd.running)])
            await settle()
    others = {tenant for tenant in TENANTS if crowd.queue.waiting[tenant]}
    crowd.arrive("late", "late")
    await settle()
    for _ in range(len(others) + 1):
        if "late" in crowd.served:
            break
        crowd.arrive(before[0])  # others keep coming
        crowd.end(next(iter(crowd.running)))
        await settle()
    assert "late" in crowd.served
    for task in crowd.tasks.values():
        task.cancel()
    await asyncio.gather(*crowd.tasks.values(), return_exceptions=True)

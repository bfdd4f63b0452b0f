"""Runs that are answered later: their queue in the store, and who begins them when."""

import asyncio
from typing import Any

import pytest

from cellar_client.schemas import ForkRequest, QueueCells, RunRequest
from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.ids import Ids, Ref
from cellar_executor.kernel import CellOutcome
from cellar_executor.presence import Presence
from cellar_executor.records import Known, QueuedRun, RunPlan
from cellar_executor.service import Service
from cellar_executor.store import Store
from tests.unit.executor.conftest import crash
from tests.unit.executor.fakes import InProcessKernel, InProcessSupervisor
from tests.unit.executor.test_service import REF, create

WAIT_S = 10.0


class Gate:
    """Every cell waits until it is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        run_cell = InProcessKernel.run_cell

        async def waits(kernel: InProcessKernel, code: str, **more: Any) -> CellOutcome:
            await self.open.wait()
            return await run_cell(kernel, code, **more)

        monkeypatch.setattr(InProcessKernel, "run_cell", waits)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def enqueue(service: Service, code: str | None = None, ids: Ids | None = None, **more: Any) -> str:
    request = RunRequest.model_validate({"code": code, **more})
    return (await service.enqueue_run(REF, request, ids or Ids.fresh())).run_id


async def output(service: Service, run_id: str) -> str:
    run = await service.find_run(REF, run_id, WAIT_S)
    assert run is not None
    return run.stdout


async def fail_once(monkeypatch: pytest.MonkeyPatch, store: Store, name: str, *, after: bool) -> None:
    """The reply of the store's next `name` is lost, or the request."""
    method = getattr(store, name)

    async def failing(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(store, name, method)
        if after:
            await method(*args, **kwargs)
        raise StoreUnavailable("lost on the way")

    monkeypatch.setattr(store, name, failing)


async def test_a_run_is_found_while_it_waits_while_it_goes_on_and_after(service: Service, gate: Gate) -> None:
    await create(service)
    first, second = await enqueue(service, "print(1)"), await enqueue(service, "print(2)")
    assert await service.find_run(REF, first, 0) is None
    assert await service.find_run(REF, second, 0.01) is None
    waiting = asyncio.create_task(service.find_run(REF, second, WAIT_S))
    gate.open.set()
    run = await waiting
    assert run is not None
    assert (run.run_id, run.stdout, [cell.index for cell in run.cells]) == (second, "2\n", [1])
    assert await service.find_run(REF, second, 0) == run
    assert await output(service, first) == "1\n"
    with pytest.raises(Refusal, match="run_not_found"):
        await service.find_run(REF, "r-other", 0)


@pytest.mark.parametrize("after", [False, True])
async def test_a_lost_reply_at_its_beginning_loses_no_queued_run(
    service: Service, store: Store, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    await create(service)
    await fail_once(monkeypatch, store, "begin", after=after)
    assert await output(service, await enqueue(service, "print(1)")) == "1\n"
    assert await store.queued_runs(REF) == []


@pytest.mark.parametrize("after", [False, True])
async def test_a_retry_of_an_acceptance_whose_reply_was_lost_finds_it(
    service: Service, store: Store, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    await create(service)
    nonce = Ids.fresh().nonce
    await fail_once(monkeypatch, store, "enqueue", after=after)
    with pytest.raises(StoreUnavailable):
        await enqueue(service, "print(1)", Ids(nonce))
    run_id = await enqueue(service, "print(1)", Ids(nonce, resumed=True))
    assert await output(service, run_id) == "1\n"
    assert [cell.status for cell in (await service.cells(REF)).cells] == ["ok"]


async def test_a_run_that_arrives_with_a_queued_one_comes_after_it(service: Service) -> None:
    await create(service)
    following = service.run(REF, RunRequest(code="print(2)"), Ids.fresh())
    queued, run = await asyncio.gather(enqueue(service, "print(1)"), following)
    assert (await output(service, queued), run.stdout) == ("1\n", "2\n")


async def test_the_store_accepts_a_run_once(service: Service, store: Store) -> None:
    await create(service)
    owned, cell = (await service.holding.get(REF)).owned, ("c", "1")
    plan = RunPlan(run_id="r", cell_id="c", timeout_s=1.0, on_error="stop", atomic=False)
    accepted = await store.enqueue(owned, plan, 60, cell=cell)
    assert accepted == QueuedRun(**plan.model_dump(), order=1, bound=0)
    assert await store.enqueue(owned, plan, 60, cell=cell) == Known(index=None)
    other = plan.model_copy(update={"run_id": "other"})
    await store.withdraw(owned, "c", 60)
    assert await store.enqueue(owned, other, 60, cell=cell) == Known(index=0)
    assert [run.run_id for run, _ in await store.queued_runs(REF)] == ["r"]


async def test_a_server_that_comes_next_begins_what_is_queued_in_its_order(
    service: Service, successor: Service, gate: Gate
) -> None:
    await create(service, "replay")
    running = await enqueue(service, "print('running')")
    first = await enqueue(service, "print('first')")
    second = await enqueue(service)
    third = await enqueue(service, "print('third')")
    await service.find_run(REF, running, 0.01)
    await crash(service, successor)
    gate.open.set()
    assert await output(successor, third) == "third\n"
    assert await output(successor, first) == "first\n"
    assert await output(successor, second) == ""
    lost = await successor.find_run(REF, running, 0)
    assert lost is not None
    assert lost.status == "lost"
    assert await successor._store.queued_runs(REF) == []


async def test_whoever_comes_next_comes_after_what_is_queued(service: Service, successor: Service, gate: Gate) -> None:
    """Else it would run their cells as its own, without their limits and whatever they say about errors."""
    await create(service, "replay")
    running = await enqueue(service, "print('running')")
    queued = await enqueue(service, "print('queued')")
    await service.find_run(REF, running, 0.01)
    await crash(service, successor)
    gate.open.set()
    following = await successor.run(REF, RunRequest(code="print('next')"), Ids.fresh())
    assert following.stdout == "next\n"
    found = await successor.find_run(REF, queued, 0)
    assert found is not None
    assert (found.run_id, found.stdout) == (queued, "queued\n")


async def test_one_that_is_refused_in_its_turn_stays_queued_and_is_tried_again(
    service: Service, store: Store, supervisor: InProcessSupervisor
) -> None:
    await create(service, "replay")
    supervisor.full = True
    supervisor.kernels[0].alive = False
    run_id = await enqueue(service, "print(1)")
    with pytest.raises(Refusal, match="kernel_unavailable"):
        await service.find_run(REF, run_id, WAIT_S)
    assert [run.run_id for run, _ in await store.queued_runs(REF)] == [run_id]
    supervisor.full = False
    assert await output(service, run_id) == "1\n"


async def test_the_queue_is_not_copied_with_a_fork_and_ends_with_its_session(
    service: Service, store: Store, gate: Gate
) -> None:
    await create(service)
    await enqueue(service, "print(1)")
    fork = asyncio.create_task(service.fork(REF, ForkRequest(session_ids=["copy"]), Ids.fresh()))
    await asyncio.sleep(0.05)
    behind = await enqueue(service, "print(2)")
    gate.open.set()
    await fork
    assert await output(service, behind) == "2\n"
    copy = Ref("tenant", "copy")
    assert await store.queued_runs(copy) == []
    assert [cell.status for cell in (await service.cells(copy)).cells] == ["ok", "pending"]
    gate.open.clear()
    await enqueue(service, "print(3)")
    await enqueue(service, "print(4)")
    assert len(await store.queued_runs(REF)) == 1
    await service.delete(REF)
    assert await store.queued_runs(REF) == []
    gate.open.set()


# --- clients that left --------------------------------------------------------------------------


async def test_a_run_that_waits_for_a_client_that_left_is_withdrawn(service: Service, gate: Gate) -> None:
    await create(service)
    first = await enqueue(service, "print(1)")
    presence = Presence()
    waiting = asyncio.create_task(service.run(REF, RunRequest(code="print(2)"), Ids.fresh(), presence))
    await asyncio.sleep(0.05)
    presence.leave()
    gate.open.set()
    with pytest.raises(Refusal, match="went away"):
        await waiting
    assert await output(service, first) == "1\n"
    assert [cell.status for cell in (await service.cells(REF)).cells] == ["ok", "withdrawn"]


async def test_the_cell_that_runs_is_interrupted_and_those_after_it_are_skipped(
    service: Service, supervisor: InProcessSupervisor, gate: Gate
) -> None:
    await create(service)
    await service.queue(REF, QueueCells(code="print(1)"), Ids.fresh())
    presence = Presence()
    request = RunRequest(code="print(2)", on_error="continue")
    running = asyncio.create_task(service.run(REF, request, Ids.fresh(), presence))
    await asyncio.sleep(0.05)
    presence.leave()
    assert supervisor.kernels[0].interrupted == 1
    gate.open.set()
    assert [cell.status for cell in (await running).cells] == ["ok", "skipped"]


async def test_a_cell_that_was_started_for_nobody_never_reaches_its_kernel(
    service: Service, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(service)
    presence, begin = Presence(), store.begin

    async def left_meanwhile(*args: Any, **kwargs: Any) -> Any:
        begun = await begin(*args, **kwargs)
        presence.leave()
        return begun

    monkeypatch.setattr(store, "begin", left_meanwhile)
    run = await service.run(REF, RunRequest(code="print(1)"), Ids.fresh(), presence)
    assert (run.status, run.stdout) == ("killed", "")
    monkeypatch.setattr(store, "begin", begin)
    assert (await service.run(REF, RunRequest(code="print(2)"), Ids.fresh())).stdout == "2\n"

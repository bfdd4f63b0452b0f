"""`atomic: true`: a run that fails leaves the session as it was, whatever happens in between."""

import asyncio
from typing import Any

import pytest

from cellar_client.schemas import CreateSession, QueueCells, Run, RunRequest
from cellar_executor import durable
from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.ids import Ids, Ref
from cellar_executor.service import Service
from cellar_executor.store import Store
from tests.unit.executor.conftest import crash
from tests.unit.executor.fakes import InProcessSupervisor

REF = Ref("tenant", "s")


@pytest.fixture(params=["fail", "replay"], autouse=True)
async def recovery(service: Service, request: pytest.FixtureRequest) -> str:
    await service.create("tenant", CreateSession(session_id="s", recovery=request.param), Ids.fresh())
    return str(request.param)


REPLAY = pytest.mark.parametrize("recovery", ["replay"], indirect=True)
FAIL = pytest.mark.parametrize("recovery", ["fail"], indirect=True)


async def run(service: Service, code: str | None = None, **more: Any) -> str:
    return (await service.run(REF, RunRequest(code=code, **more), Ids.fresh())).stdout


async def atomic(service: Service, code: str | None = None, ids: Ids | None = None, **more: Any) -> Run:
    return await service.run(REF, RunRequest(code=code, atomic=True, **more), ids or Ids.fresh())


async def queue(service: Service, *codes: str) -> None:
    for code in codes:
        await service.queue(REF, QueueCells(code=code), Ids.fresh())


FAILURES = {"error": "1 / 0", "timeout": "stall()", "killed": "die()"}


@pytest.mark.parametrize("how", FAILURES)
async def test_a_failed_run_leaves_the_session_as_it_was(
    service: Service, supervisor: InProcessSupervisor, how: str
) -> None:
    await run(service, "x = 1")
    await service.put_file(REF, "f", b"1")
    await queue(service, "x = 2; files['f'] = b'2'; files['g'] = b''; print('seen')", FAILURES[how], "never = 1")
    failed = await atomic(service)
    assert (failed.status, failed.rolled_back, failed.generation, failed.stdout) == (how, True, 1, "seen\n")
    assert [cell.status for cell in failed.cells] == ["ok", how, "skipped"]
    assert (await service.get(REF)).generation == 2
    after = await service.run(REF, RunRequest(code="print(x, files)"), Ids.fresh())
    assert (after.stdout, after.recovered, after.generation) == ("1 {'f': b'1'}\n", False, 2)
    assert [kernel.closed for kernel in supervisor.kernels] == [True, False]
    assert await service.find_run(REF, failed.run_id, 0) == failed


async def test_a_rolled_back_run_stays_out_of_every_later_replay(service: Service) -> None:
    await run(service, "x = [1]")
    await queue(service, "x.append('undone')")
    await atomic(service, "1 / 0")
    await run(service, "x.append(2)")
    await atomic(service, "die()")
    assert await run(service, "print(x)") == "[1, 2]\n"


async def test_a_run_that_went_well_stays(service: Service) -> None:
    await queue(service, "x = 1", "x += 1")
    done = await atomic(service, "x += 1")
    assert (done.status, done.rolled_back) == ("ok", False)
    assert await service.find_run(REF, done.run_id, 0) == done
    await atomic(service, "die()")
    assert await run(service, "print(x)") == "3\n"
    assert (await service.get(REF)).generation == 2


async def test_a_run_that_goes_on_after_an_error_fails_all_the_same(service: Service) -> None:
    await queue(service, "1 / 0")
    failed = await atomic(service, "x = 1", on_error="continue")
    assert (failed.rolled_back, [cell.status for cell in failed.cells]) == (True, ["error", "ok"])
    assert await run(service, "print('x' in globals())") == "False\n"


async def test_a_run_of_nothing_is_ok(service: Service) -> None:
    empty = await atomic(service)
    assert (empty.status, empty.rolled_back) == ("ok", False)


async def test_a_failed_run_keeps_what_came_later_pending(service: Service) -> None:
    live = service._sessions.get(REF)
    assert live is not None
    async with live.my_turn():
        waiting = asyncio.create_task(atomic(service, "1 / 0"))
        await asyncio.sleep(0.05)
        await queue(service, "print('later')")
    assert (await waiting).rolled_back
    assert await run(service) == "later\n"


async def test_after_a_half_done_cell_an_atomic_run_is_refused_before_anything_runs(service: Service) -> None:
    ids = Ids.fresh()
    first = await atomic(service, "x = 1", ids)
    await run(service, "stall()")
    await queue(service, "x = 2")
    with pytest.raises(Refusal, match="not_repeatable"):
        await atomic(service, "x = 3")
    assert [cell.status for cell in (await service.cells(REF)).cells] == ["ok", "timeout", "pending"]
    assert await atomic(service, "x = 1", ids) == first
    assert await run(service, "print(x)") == "2\n"


async def test_an_atomic_run_in_line_behind_a_half_done_cell_is_refused(service: Service) -> None:
    live = service._sessions.get(REF)
    assert live is not None
    async with live.my_turn():
        first = asyncio.create_task(run(service, "stall()"))
        second = asyncio.create_task(atomic(service, "x = 1"))
        await asyncio.sleep(0.05)
    await first
    with pytest.raises(Refusal, match="not_repeatable"):
        await second
    assert [cell.status for cell in (await service.cells(REF)).cells] == ["timeout", "pending"]


async def test_what_a_failed_run_left_half_done_is_undone(service: Service, store: Store) -> None:
    assert (await atomic(service, "stall()")).rolled_back
    assert not (await store.session(REF)).unrepeatable
    assert (await atomic(service, "x = 1")).status == "ok"


async def test_what_a_good_run_left_half_done_is_not_forgotten(
    service: Service, store: Store, supervisor: InProcessSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = supervisor.kernels[0]
    run_cell = kernel.run_cell

    async def interrupted(code: str, **more: Any) -> Any:
        await service.interrupt(REF)
        return await run_cell(code, **more)

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "run_cell", interrupted)
        await queue(service, "x = 1")
        assert (await atomic(service, "y = 1")).status == "ok"
    assert (await store.session(REF)).unrepeatable
    with pytest.raises(Refusal, match="not_repeatable"):
        await atomic(service, "x = 2")


@REPLAY
@pytest.mark.parametrize("finished", [True, False])
async def test_a_crash_within_a_run_leaves_none_of_it(
    service: Service, successor: Service, store: Store, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """Either its last cell never finished, or it failed and the crash came before the kernel was rolled back."""
    step = store.step

    async def step_and_crash(*args: Any, **more: Any) -> Any:
        cell = args[2]
        if cell.index == 2:
            if finished:
                await step(*args, **more)
            await crash(service, successor)
            raise StoreUnavailable("the server is dead")
        return await step(*args, **more)

    await run(service, "x = [1]")
    monkeypatch.setattr(store, "step", step_and_crash)
    monkeypatch.setattr(durable, "PATIENCE_S", 0.0)
    ids = Ids.fresh()
    await queue(service, "x.append(2)")
    with pytest.raises(StoreUnavailable):
        await service.run(REF, RunRequest(code="x.append(3); stall()", atomic=True), ids)
    retried = await successor.run(REF, RunRequest(code="x.append(3); stall()", atomic=True), ids)
    assert (retried.status, retried.rolled_back) == ("timeout" if finished else "lost", True)
    assert await run(successor, "print(x)") == "[1]\n"
    await service.background.cancel()


@REPLAY
async def test_a_crash_after_a_good_run_loses_nothing(service: Service, successor: Service) -> None:
    await queue(service, "x = 1")
    await atomic(service, "x += 1")
    await crash(service, successor)
    assert await run(successor, "print(x)") == "2\n"


async def test_a_rollback_whose_cells_end_otherwise_loses_the_session(
    service: Service, supervisor: InProcessSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio, "ran_before", False, raising=False)
    await run(service, "import asyncio\nassert not asyncio.ran_before\nasyncio.ran_before = True")
    assert (await atomic(service, "1 / 0")).status == "error"
    assert (await service.get(REF)).status == "lost"
    with pytest.raises(Refusal, match="session_lost"):
        await run(service, "1")
    assert not any(kernel.alive for kernel in supervisor.kernels)
    await service.reset(REF)
    assert await run(service, "print(1)") == "1\n"


async def test_a_rollback_that_finds_no_kernel(
    service: Service, supervisor: InProcessSupervisor, recovery: str
) -> None:
    await run(service, "x = 1")
    supervisor.full = True
    await atomic(service, "x = 2; 1 / 0")
    supervisor.full = False
    if recovery == "replay":
        assert await run(service, "print(x)") == "1\n"
    else:
        assert (await service.get(REF)).status == "lost"


async def test_a_rollback_waits_for_redis(
    service: Service, store: Store, supervisor: InProcessSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew, tries = store.new_generation, iter(range(3))

    async def away(*args: Any, **more: Any) -> None:
        if next(tries, None) is not None:
            raise StoreUnavailable("away")
        await renew(*args, **more)

    monkeypatch.setattr(durable, "RETRY_S", 0.01)
    await run(service, "x = 1")
    monkeypatch.setattr(store, "new_generation", away)
    assert (await atomic(service, "x = 2; 1 / 0")).rolled_back
    assert await run(service, "print(x)") == "1\n"
    assert sum(kernel.alive for kernel in supervisor.kernels) == 1


async def test_a_rollback_needs_no_room_of_its_own(service: Service) -> None:
    for name in "ab":
        await service.create("tenant", CreateSession(session_id=name), Ids.fresh())
    assert (await atomic(service, "x = 1; 1 / 0")).rolled_back
    assert (await service.get(REF)).generation == 2
    assert await run(service, "print('x' in globals())") == "False\n"

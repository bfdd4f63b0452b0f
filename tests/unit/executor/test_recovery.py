"""What becomes of a rebuild when its kernel dies over it, or its session is another server's in the middle of it."""

import asyncio
from typing import Any

import pytest

from cellar_client.schemas import CreateSession, Run, RunRequest
from cellar_executor.errors import Moved, Refusal
from cellar_executor.ids import Ids, Ref
from cellar_executor.kernel import CellOutcome
from cellar_executor.service import Service
from cellar_executor.store import Store
from tests.unit.executor.fakes import InProcessKernel, InProcessSupervisor

REF = Ref("tenant", "s")


class Replays:
    """Holds every cell up that is run while `on`, until `go_on`."""

    def __init__(self) -> None:
        self.on = False
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    replays, run_cell = Replays(), InProcessKernel.run_cell

    async def held_up(kernel: InProcessKernel, code: str, **more: Any) -> CellOutcome:
        if replays.on:
            replays.begun.set()
            await replays.go_on.wait()
        return await run_cell(kernel, code, **more)

    monkeypatch.setattr(InProcessKernel, "run_cell", held_up)
    return replays


async def run(service: Service, code: str) -> Run:
    return await service.run(REF, RunRequest(code=code), Ids.fresh())


@pytest.fixture
async def _dead(service: Service, supervisor: InProcessSupervisor) -> None:
    """A session that can be rebuilt, and whose kernel is dead."""
    await service.create("tenant", CreateSession(session_id="s", recovery="replay"), Ids.fresh())
    await run(service, "x = 1")
    await supervisor.kernels[-1].close()


@pytest.mark.usefixtures("_dead")
async def test_a_kernel_that_is_killed_once_over_a_rebuild_does_not_lose_the_session(
    service: Service, supervisor: InProcessSupervisor, replays: Replays
) -> None:
    replays.on = True
    running = asyncio.create_task(run(service, "print(x)"))
    await replays.begun.wait()
    await supervisor.kernels[-1].close()
    replays.on = False
    replays.go_on.set()
    assert (await running).stdout == "1\n"
    assert sum(kernel.alive for kernel in supervisor.kernels) == 1


@pytest.mark.usefixtures("_dead")
async def test_a_rebuild_ends_at_once_when_its_session_is_held_no_more(
    service: Service, supervisor: InProcessSupervisor, replays: Replays, store: Store
) -> None:
    replays.on = True
    running = asyncio.create_task(run(service, "print(x)"))
    await replays.begun.wait()
    service.holding.forget_all()
    assert not supervisor.kernels[-1].alive
    replays.on = False
    replays.go_on.set()
    with pytest.raises(Moved):
        await running
    assert not (await store.session(REF)).unrepeatable
    assert (await run(service, "print(x)")).stdout == "1\n"
    assert sum(kernel.alive for kernel in supervisor.kernels) == 1


@pytest.mark.usefixtures("_dead")
async def test_what_another_server_holds_is_not_even_begun_to_be_rebuilt(
    service: Service, supervisor: InProcessSupervisor, store: Store, successor: Service
) -> None:
    made = len(supervisor.kernels)
    await store.unregister()
    await successor.get(REF)
    await store.register("http://one", None)
    with pytest.raises(Moved):
        await run(service, "print(x)")
    assert len(supervisor.kernels) == made


@pytest.mark.usefixtures("_dead")
async def test_a_session_that_is_deleted_while_it_is_rebuilt_leaves_no_kernel(
    service: Service, supervisor: InProcessSupervisor, replays: Replays
) -> None:
    replays.on = True
    running = asyncio.create_task(run(service, "print(x)"))
    await replays.begun.wait()
    await service.delete(REF)
    replays.go_on.set()
    with pytest.raises(Refusal, match="session_not_found"):
        await running
    assert not any(kernel.alive for kernel in supervisor.kernels)

"""The use cases over a real Redis and in-process kernels."""

import asyncio
import logging
from typing import Any

import pytest

from cellar_client.schemas import CreateSession, ExecuteRequest, ForkRequest, QueueCells, RunRequest, Tier
from cellar_executor.errors import Refusal
from cellar_executor.ids import Ids, Ref
from cellar_executor.kernel import CellOutcome
from cellar_executor.service import Service
from cellar_executor.store import Store
from tests.unit.executor.fakes import InProcessKernel, InProcessSupervisor

REF = Ref("tenant", "s")


async def create(service: Service, recovery: str = "fail", session_id: str = "s") -> None:
    request = CreateSession.model_validate({"session_id": session_id, "recovery": recovery})
    await service.create("tenant", request, Ids.fresh())


async def run(service: Service, code: str | None = None, **more: str) -> tuple[str, str]:
    run = await service.run(REF, RunRequest.model_validate({"code": code, **more}), Ids.fresh())
    return run.status, run.stdout


async def test_a_session_is_ready_when_it_is_created(service: Service, supervisor: InProcessSupervisor) -> None:
    await create(service)
    assert (await service.get(REF)).status == "ready"
    assert len(supervisor.kernels) == 1


async def test_without_a_kernel_there_is_no_session(service: Service, supervisor: InProcessSupervisor) -> None:
    supervisor.full = True
    with pytest.raises(Refusal, match="kernel_unavailable"):
        await create(service)
    with pytest.raises(Refusal, match="session_not_found"):
        await service.get(REF)
    with pytest.raises(Refusal, match="kernel_unavailable"):
        await service.execute("t", ExecuteRequest(code="1"), Ids.fresh())


async def test_creations_that_race_leave_one_session_and_one_kernel(
    service: Service, supervisor: InProcessSupervisor
) -> None:
    results = await asyncio.gather(*(create(service) for _ in range(3)), return_exceptions=True)
    assert results.count(None) == 1
    assert sum(kernel.alive for kernel in supervisor.kernels) == 1
    assert await run(service, "print(1)") == ("ok", "1\n")


async def test_delete_closes_the_kernel(service: Service, supervisor: InProcessSupervisor) -> None:
    await create(service)
    await service.delete(REF)
    await service.delete(REF)
    assert supervisor.kernels[0].closed


async def test_a_full_server_makes_no_kernel(service: Service, supervisor: InProcessSupervisor) -> None:
    for name in "abc":
        await create(service, session_id=name)
    with pytest.raises(Refusal, match="too_many_sessions"):
        await create(service, session_id="d")
    assert len(supervisor.kernels) == 3


async def test_a_dead_kernel_is_closed_and_its_session_lost(service: Service, supervisor: InProcessSupervisor) -> None:
    await create(service)
    assert await run(service, "die()") == ("killed", "")
    assert supervisor.kernels[0].closed
    for attempt in (run(service, "1"), service.queue(REF, QueueCells(code="1"), Ids.fresh()), service.interrupt(REF)):
        with pytest.raises(Refusal, match="session_lost"):
            await attempt
    assert (await service.get(REF)).status == "lost"


@pytest.mark.parametrize(("recovery", "code", "status"), [("fail", "die()", "lost"), ("replay", "die()", "ready")])
async def test_other_servers_list_what_became_of_a_session(
    service: Service, successor: Service, recovery: str, code: str, status: str
) -> None:
    await create(service, recovery)
    await run(service, code)
    for one in (service, successor):
        [session] = (await one.list("tenant", None, 10)).sessions
        assert session.status == status
    if status == "lost":
        await service.reset(REF)
        assert [session.status for session in (await successor.list("tenant", None, 10)).sessions] == ["ready"]


async def test_a_session_that_was_lost_to_a_takeover_is_listed_so_everywhere(
    service: Service, successor: Service, store: Store
) -> None:
    await create(service)
    await store.unregister()
    await successor.get(REF)
    await store.register("http://one", None)
    service.holding.forget_all()
    assert [session.status for session in (await service.list("tenant", None, 10)).sessions] == ["lost"]


async def test_a_replay_gives_the_state_back_without_its_output(
    service: Service, supervisor: InProcessSupervisor
) -> None:
    await create(service, recovery="replay")
    await run(service, "x = 20; print('old')")
    await run(service, "x += 1\n1/0")
    await run(service, "die()")
    assert await run(service, "print(x * 2)") == ("ok", "42\n")
    assert (await service.get(REF)).generation == 2
    assert len(supervisor.kernels) == 2


async def test_a_replay_that_finds_no_kernel_may_be_tried_again(
    service: Service, supervisor: InProcessSupervisor
) -> None:
    await create(service, recovery="replay")
    await run(service, "x = 1")
    await run(service, "die()")
    supervisor.full = True
    with pytest.raises(Refusal, match="kernel_unavailable"):
        await run(service, "print(x)")
    supervisor.full = False
    assert await run(service, "print(x)") == ("ok", "1\n")


async def test_a_kernel_that_breaks_its_protocol_kills_the_cell_and_nothing_runs_twice(
    service: Service, supervisor: InProcessSupervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(code: str, **_: object) -> None:
        raise ValueError("not a frame")

    await create(service)
    monkeypatch.setattr(supervisor.kernels[0], "run_cell", broken)
    with caplog.at_level(logging.CRITICAL):
        assert await run(service, "x") == ("killed", "")
    assert [cell.status for cell in (await service.cells(REF)).cells] == ["killed"]


async def test_a_draining_server_begins_nothing(service: Service) -> None:
    await create(service)
    await service.drain(1)
    with pytest.raises(Refusal, match="shutting_down"):
        await run(service, "1")


async def test_the_self_test_is_not_repeated_for_every_probe(service: Service, supervisor: InProcessSupervisor) -> None:
    assert [(await service.status.readiness()).status for _ in range(3)] == ["ready"] * 3
    assert supervisor.self_tests == 1


async def test_probes_at_the_same_time_share_one_self_test(service: Service, supervisor: InProcessSupervisor) -> None:
    replies = await asyncio.gather(*(service.status.readiness() for _ in range(25)))
    assert {reply.status for reply in replies} == {"ready"}
    assert supervisor.self_tests == 1


async def test_a_jail_that_does_not_hold_makes_the_server_not_ready(
    service: Service, supervisor: InProcessSupervisor
) -> None:
    supervisor.problem = "the network can be reached"
    readiness = await service.status.readiness()
    assert (readiness.status, readiness.isolation) == ("not_ready", "the network can be reached")


async def test_health_says_when_there_is_no_isolation(service: Service, supervisor: InProcessSupervisor) -> None:
    assert service.status.health().isolation == "isolated"
    supervisor.isolation = supervisor.isolation.model_copy(update={"tier": "none"})
    assert "INSECURE" in service.status.health().isolation


async def test_an_execution_gives_its_kernel_back_even_when_its_files_are_refused(
    service: Service, supervisor: InProcessSupervisor
) -> None:
    with pytest.raises(Refusal, match="invalid_request"):
        await service.execute("t", ExecuteRequest(code="1", files={"/etc/passwd": ""}), Ids.fresh())
    assert supervisor.kernels[0].closed


async def test_idle_sessions_expire_with_their_kernels(service: Service, supervisor: InProcessSupervisor) -> None:
    request = CreateSession.model_validate({"session_id": "s", "idle_ttl_s": 0.01})
    await service.create("tenant", request, Ids.fresh())
    await asyncio.sleep(0.02)
    await service.holding.expire()
    assert supervisor.kernels[0].closed
    with pytest.raises(Refusal, match="session_not_found"):
        await service.get(REF)


@pytest.mark.parametrize("recovery", ["fail", "replay"])
async def test_a_run_in_line_for_a_deleted_session_finds_none(service: Service, recovery: str) -> None:
    await create(service, recovery)
    live = service._sessions.get(REF)
    assert live is not None
    async with live.my_turn():
        waiting = [asyncio.create_task(run(service, *code)) for code in ((), ("1",))]
        await asyncio.sleep(0.05)
        await service.delete(REF)
    for refused in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(refused, Refusal)
        assert refused.code == "session_not_found"


@pytest.mark.parametrize("how", ["reset", "replay"])
async def test_a_session_deleted_while_its_new_kernel_is_recorded_leaves_no_kernel(
    service: Service, store: Store, supervisor: InProcessSupervisor, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    record = store.new_generation

    async def record_and_delete(*args: Any, **more: Any) -> None:
        await record(*args, **more)
        await service.delete(REF)

    await create(service, "replay")
    if how == "replay":
        await run(service, "die()")
    monkeypatch.setattr(store, "new_generation", record_and_delete)
    with pytest.raises(Refusal, match="session_not_found"):
        await (service.reset(REF) if how == "reset" else run(service, "1"))
    assert [kernel.closed for kernel in supervisor.kernels] == [True, True]


def tiers(supervisor: InProcessSupervisor) -> list[Tier | None]:
    return [kernel.tier for kernel in supervisor.kernels]


async def test_every_kernel_of_a_session_is_isolated_as_it_asked(
    service: Service, supervisor: InProcessSupervisor
) -> None:
    for name, isolation in (("s", "strict"), ("plain", None)):
        request = CreateSession(session_id=name, recovery="replay", isolation=isolation)  # type: ignore[arg-type]  # one of both
        assert (await service.create("tenant", request, Ids.fresh())).isolation == (isolation or "warm")
    await run(service, "die()")
    await run(service, "1")
    await service.reset(REF)
    await service.run(REF, RunRequest(code="1 / 0", atomic=True), Ids.fresh())
    await service.fork(REF, ForkRequest(), Ids.fresh())
    assert tiers(supervisor) == ["strict", "warm", "strict", "strict", "strict", "strict"]


@pytest.mark.parametrize("tier", ["strict", "none"])
async def test_weaker_isolation_than_the_servers_is_refused(
    service: Service, supervisor: InProcessSupervisor, tier: str
) -> None:
    supervisor.isolation = supervisor.isolation.model_copy(update={"tier": tier})
    with pytest.raises(Refusal, match="isolation_unavailable"):
        await service.create("tenant", CreateSession(isolation="warm"), Ids.fresh())
    with pytest.raises(Refusal, match="isolation_unavailable"):
        await service.execute("t", ExecuteRequest(code="1", isolation="warm"), Ids.fresh())
    assert supervisor.kernels == []


async def test_an_execution_is_isolated_as_it_asked(service: Service, supervisor: InProcessSupervisor) -> None:
    await service.execute("t", ExecuteRequest(code="1", isolation="strict"), Ids.fresh())
    await service.execute("t", ExecuteRequest(code="1"), Ids.fresh())
    assert tiers(supervisor) == ["strict", "warm"]


@pytest.mark.parametrize("how", ["recovery", "reset"])
async def test_a_kernel_that_is_had_again_needs_room(service: Service, how: str) -> None:
    await create(service, recovery="replay")
    await run(service, "die()")
    for name in "ab":
        await create(service, session_id=name)
    with service._sessions.reserve("t", 1), pytest.raises(Refusal, match="too_many_sessions"):
        await (run(service, "1") if how == "recovery" else service.reset(REF))
    await (run(service, "1") if how == "recovery" else service.reset(REF))


async def test_a_full_server_resets_what_lives(service: Service) -> None:
    for name in "abs":
        await create(service, session_id=name)
    assert (await service.reset(REF)).generation == 2


async def test_what_the_host_counted_is_recorded_with_a_cell(service: Service) -> None:
    await create(service)
    [cell] = (await service.run(REF, RunRequest(code="1"), Ids.fresh())).cells
    assert (cell.cpu_s, cell.peak_memory_bytes) == (0.5, 4096)
    assert (await service.cells(REF)).cells == [cell]


async def test_a_retry_is_answered_after_its_session_was_lost(service: Service) -> None:
    await create(service)
    ids = Ids.fresh()
    empty = await service.run(REF, RunRequest(), ids)
    deadly = RunRequest(code="die()", cell_id="c")
    first = await service.run(REF, deadly, Ids.fresh())
    assert first.status == "killed"
    assert await service.run(REF, deadly, Ids.fresh()) == first
    assert await service.run(REF, RunRequest(), ids) == empty
    for other in (RunRequest(code="other", cell_id="c"), RunRequest(code="die()"), RunRequest()):
        with pytest.raises(Refusal, match="session_lost"):
            await service.run(REF, other, Ids.fresh())


async def test_an_execution_that_outlasts_the_server_is_answered_killed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, closed = asyncio.Event(), asyncio.Event()

    async def close(kernel: InProcessKernel) -> None:
        closed.set()

    async def run_until_closed(kernel: InProcessKernel, code: str, **_: Any) -> CellOutcome:
        begun.set()
        await closed.wait()
        return CellOutcome("killed", "", "", None, None, 0.0, truncated=False)

    monkeypatch.setattr(InProcessKernel, "run_cell", run_until_closed)
    monkeypatch.setattr(InProcessKernel, "close", close)
    running = asyncio.create_task(service.execute("t", ExecuteRequest(code="1"), Ids.fresh()))
    await begun.wait()
    await service.close()
    assert (await asyncio.wait_for(running, 5)).status == "killed"

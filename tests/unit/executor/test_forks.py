"""Copies of a session: all or none, and each a session of its own."""

import asyncio
from typing import Any

import httpx
import pytest

from cellar_client.schemas import CreateSession, ForkRequest, QueueCells, RunRequest, Session
from cellar_executor import forks
from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.ids import Ids, Owned, Ref
from cellar_executor.service import Service
from cellar_executor.store import Store
from tests.unit.executor.conftest import crash
from tests.unit.executor.fakes import InProcessSupervisor

REF = Ref("tenant", "s")


@pytest.fixture(params=["fail"], autouse=True)
async def _session(service: Service, request: pytest.FixtureRequest) -> None:
    asked = CreateSession(session_id="s", recovery=request.param, metadata={"task": 7}, isolation="strict")
    await service.create("tenant", asked, Ids.fresh())


REPLAY = pytest.mark.parametrize("_session", ["replay"], indirect=True)
EITHER_TRUST = pytest.mark.parametrize("trust", ["isolated", "shared"])


async def run(service: Service, code: str | None = None, session_id: str = "s") -> str:
    return (await service.run(Ref("tenant", session_id), RunRequest(code=code), Ids.fresh())).stdout


async def fork(service: Service, ids: Ids | None = None, **asked: Any) -> list[Session]:
    request = ForkRequest.model_validate(asked)
    return (await service.fork(REF, request, ids or Ids.fresh())).sessions


def alive(supervisor: InProcessSupervisor) -> int:
    return sum(kernel.alive for kernel in supervisor.kernels)


@EITHER_TRUST
async def test_a_copy_has_the_state_and_what_is_pending_and_leaves_its_origin_alone(
    service: Service, trust: str
) -> None:
    await run(service, "x = [1]")
    await service.queue(REF, QueueCells(code="x.append(2)"), Ids.fresh())
    a, b = await fork(service, session_ids=["a", "b"], trust=trust)
    assert [copy.session_id for copy in (a, b)] == ["a", "b"]
    assert (a.status, a.generation, a.cells_total, a.cells_pending) == ("ready", 1, 2, 1)
    assert (a.metadata, a.isolation, a.recovery) == ({"task": 7}, "strict", "fail")
    assert await run(service, "x.append('a'); print(x)", "a") == "[1, 2, 'a']\n"
    assert await run(service, "print(x)", "b") == "[1, 2]\n"
    assert await run(service, "print(x)") == "[1, 2]\n"
    assert (await service.cell(Ref("tenant", "b"), (await service.cells(REF)).cells[0].cell_id)).status == "ok"


async def test_an_isolated_copy_has_files_of_its_own(service: Service, supervisor: InProcessSupervisor) -> None:
    await service.put_file(REF, "f", b"1")
    await run(service, "seen = files['f']")
    await service.put_file(REF, "f", b"2")
    [copy] = await fork(service)
    assert await run(service, "print(seen, files); files['f'] = b'3'", copy.session_id) == "b'1' {'f': b'2'}\n"
    assert await service.get_file(REF, "f") == b"2"
    assert [kernel.tier for kernel in supervisor.kernels] == ["strict", "strict"]


async def test_a_shared_copy_shares_files(service: Service, supervisor: InProcessSupervisor) -> None:
    [copy] = await fork(service, trust="shared")
    await run(service, "files['f'] = b'1'", copy.session_id)
    assert await service.get_file(REF, "f") == b"1"
    assert len(supervisor.kernels) == 1


@REPLAY
@EITHER_TRUST
async def test_a_copy_recovers_like_any_session(service: Service, trust: str) -> None:
    await run(service, "x = 1")
    await service.put_file(REF, "f", b"1")
    [copy] = await fork(service, trust=trust)
    await run(service, "x += 1; die()", copy.session_id)
    await run(service, "x += 10", copy.session_id)
    assert await run(service, "print(x, files)", copy.session_id) == "11 {'f': b'1'}\n"
    assert (await service.get(Ref("tenant", copy.session_id))).generation == 2


@REPLAY
@EITHER_TRUST
async def test_a_session_whose_kernel_died_can_be_forked_if_it_can_be_rebuilt(service: Service, trust: str) -> None:
    await run(service, "x = 1")
    await run(service, "die()")
    [copy] = await fork(service, trust=trust)
    assert await run(service, "print(x)", copy.session_id) == "1\n"


@EITHER_TRUST
async def test_a_lost_session_is_not_forked(service: Service, trust: str) -> None:
    await run(service, "die()")
    with pytest.raises(Refusal, match="session_lost"):
        await fork(service, trust=trust)


async def test_state_left_half_done_is_only_copied_live(service: Service, store: Store) -> None:
    await run(service, "x = 1; stall()")
    with pytest.raises(Refusal, match="not_repeatable"):
        await fork(service)
    [copy] = await fork(service, trust="shared")
    assert await run(service, "print(x)", copy.session_id) == "1\n"
    assert (await store.session(Ref("tenant", copy.session_id))).unrepeatable
    await run(service, "die()", copy.session_id)
    assert (await service.get(Ref("tenant", copy.session_id))).status == "lost"


async def test_cells_that_end_otherwise_are_not_copied_and_the_origin_lives(
    service: Service, supervisor: InProcessSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio, "ran_before", False, raising=False)
    await run(service, "import asyncio\nassert not asyncio.ran_before\nasyncio.ran_before = True")
    with pytest.raises(Refusal, match="not_repeatable"):
        await fork(service, count=2)
    assert alive(supervisor) == 1
    assert await run(service, "print(1)") == "1\n"


async def test_what_a_reset_made_history_is_history_in_the_copy(service: Service) -> None:
    await run(service, "old = 1")
    await service.reset(REF)
    await run(service, "new = 1")
    [copy] = await fork(service)
    assert await run(service, "print('old' in globals(), 'new' in globals())", copy.session_id) == "False True\n"
    [second] = (await service.fork(Ref("tenant", copy.session_id), ForkRequest(), Ids.fresh())).sessions
    assert await run(service, "print('old' in globals(), 'new' in globals())", second.session_id) == "False True\n"


@pytest.mark.parametrize("at_once", [1, 2])
async def test_a_copy_that_gets_no_kernel_leaves_none_of_them(
    service: Service, supervisor: InProcessSupervisor, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(forks, "REPLAYS_AT_ONCE", at_once)
    supervisor.room = 1
    with pytest.raises(Refusal, match="kernel_unavailable"):
        await fork(service, session_ids=["a", "b"])
    assert alive(supervisor) == 1
    assert [session.session_id for session in (await service.list("tenant", None, 9)).sessions] == ["s"]
    supervisor.room = 9
    assert len(await fork(service, session_ids=["a", "b"])) == 2


@EITHER_TRUST
async def test_copies_that_cannot_be_recorded_leave_no_kernels(
    service: Service, supervisor: InProcessSupervisor, store: Store, monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "fork", away)
        with pytest.raises(StoreUnavailable):
            await fork(service, session_ids=["a", "b"], trust=trust)
    assert alive(supervisor) == 1
    assert len(await fork(service, session_ids=["a", "b"], trust=trust)) == 2


@EITHER_TRUST
async def test_no_more_copies_than_the_quota(service: Service, supervisor: InProcessSupervisor, trust: str) -> None:
    with pytest.raises(Refusal, match="too_many_sessions"):
        await fork(service, count=3, trust=trust)
    assert len(supervisor.kernels) == 1
    assert len(await fork(service, count=2, trust=trust)) == 2


async def test_the_quota_is_held_by_the_store_too(store: Store) -> None:
    copies = [Ref("tenant", name) for name in "abc"]
    with pytest.raises(Refusal, match="too_many_sessions"):
        await store.fork(Owned(REF, 1), copies, 60, origin="n", max_sessions=3)
    assert await store.origins(copies) == [None] * 3


@pytest.mark.parametrize("deleted", [True, False])
async def test_an_id_that_is_or_was_in_use_forks_nothing(
    service: Service, supervisor: InProcessSupervisor, deleted: bool
) -> None:
    await service.create("tenant", CreateSession(session_id="b"), Ids.fresh())
    if deleted:
        await service.delete(Ref("tenant", "b"))
    with pytest.raises(Refusal, match="session_exists"):
        await fork(service, session_ids=["a", "b"])
    assert alive(supervisor) == (1 if deleted else 2)
    with pytest.raises(Refusal, match="session_not_found"):
        await service.get(Ref("tenant", "a"))


async def test_ids_made_by_the_server_are_not_to_be_asked_for(service: Service) -> None:
    with pytest.raises(Refusal, match="invalid_request"):
        await fork(service, session_ids=[Ids.fresh().session()])


async def test_a_fork_that_is_tried_again_finds_the_same_copies(
    service: Service, supervisor: InProcessSupervisor
) -> None:
    ids = Ids.fresh()
    first = await fork(service, ids, count=2)
    assert await fork(service, ids, count=2) == first
    assert len(supervisor.kernels) == 3


async def test_a_fork_that_is_tried_again_after_a_crash_makes_no_more(service: Service, successor: Service) -> None:
    ids = Ids.fresh()
    first = await fork(service, ids, count=2)
    await crash(service, successor)
    again = await fork(successor, ids, count=2)
    assert [copy.session_id for copy in again] == [copy.session_id for copy in first]
    assert {copy.status for copy in again} == {"lost"}


async def test_the_key_of_a_fork_gives_its_first_answer(
    http: httpx.AsyncClient, service: Service, supervisor: InProcessSupervisor
) -> None:
    session_id = (await http.post("/v1/sessions")).json()["session_id"]
    await service.delete(REF)
    headers = {"Idempotency-Key": "k"}
    first, second = [await http.post(f"/v1/sessions/{session_id}/fork", headers=headers) for _ in range(2)]
    assert (first.status_code, first.json()) == (201, second.json())
    assert second.headers["Idempotency-Replayed"] == "true"
    assert alive(supervisor) == 2


async def test_a_fork_waits_for_the_turn_of_its_origin(service: Service) -> None:
    live = service._sessions.get(REF)
    assert live is not None
    async with live.my_turn():
        waiting = asyncio.create_task(fork(service))
        await asyncio.sleep(0.05)
        assert not waiting.done()
    assert len(await waiting) == 1

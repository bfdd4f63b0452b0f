"""Which sessions give their kernels back, and what becomes of them."""

import time

import pytest

from cellar_client.schemas import CreateSession, Recovery, RunRequest
from cellar_executor.errors import Refusal
from cellar_executor.idle import IdleSessions
from cellar_executor.ids import Ids, Ref
from cellar_executor.service import Service


def idle_sessions(service: Service, park_after_s: float = 60, free_bytes: int = 0) -> IdleSessions:
    return IdleSessions(
        service._store, service._sessions, park_after_s=park_after_s, min_free_bytes=1, free_bytes=lambda: free_bytes
    )


async def create(service: Service, name: str, recovery: Recovery = "replay") -> None:
    await service.create("tenant", CreateSession(session_id=name, recovery=recovery), Ids.fresh())


async def run(service: Service, name: str, code: str) -> tuple[str, bool]:
    run = await service.run(Ref("tenant", name), RunRequest(code=code), Ids.fresh())
    return run.stdout, run.recovered


def alive(service: Service) -> list[str]:
    return sorted(live.ref.session_id for live in service._sessions if live.alive)


async def test_a_session_that_was_idle_for_long_is_parked_and_rebuilt_when_it_is_used(service: Service) -> None:
    await create(service, "a")
    await run(service, "a", "x = 1")
    await idle_sessions(service, park_after_s=60).park()
    assert alive(service) == ["a"]
    await idle_sessions(service, park_after_s=0).park()
    assert alive(service) == []
    assert (await service.get(Ref("tenant", "a"))).status == "ready"
    assert await run(service, "a", "print(x)") == ("1\n", True)


async def test_a_session_that_cannot_be_rebuilt_is_never_parked(service: Service) -> None:
    await create(service, "fails", "fail")
    await create(service, "half")
    await run(service, "half", "stall()")
    await idle_sessions(service, park_after_s=0).park()
    assert alive(service) == ["fails", "half"]


async def test_a_session_in_use_keeps_its_kernel(service: Service) -> None:
    await create(service, "a")
    live = service._sessions.get(Ref("tenant", "a"))
    assert live is not None
    async with live.my_turn():
        await idle_sessions(service, park_after_s=0).park()
        await idle_sessions(service).relieve()
    assert alive(service) == ["a"]


async def test_when_memory_is_short_the_longest_idle_go_first_and_those_that_are_lost_by_it_last(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellar_executor.idle.AT_ONCE", 1)
    await create(service, "fails", "fail")
    await create(service, "old")
    await create(service, "new")
    gone = []
    for _ in range(3):
        before = alive(service)
        await idle_sessions(service).relieve()
        gone += sorted(set(before) - set(alive(service)))
    assert gone == ["old", "new", "fails"]
    assert await run(service, "old", "print(1)") == ("1\n", True)
    with pytest.raises(Refusal, match="session_lost"):
        await run(service, "fails", "1")


async def test_while_memory_is_short_and_nothing_is_idle_there_are_no_more_sessions(service: Service) -> None:
    await idle_sessions(service, free_bytes=0).relieve()
    with pytest.raises(Refusal, match="short of memory"):
        await create(service, "a")
    await idle_sessions(service, free_bytes=2).relieve()
    await create(service, "a")


async def test_a_turn_makes_a_session_used(service: Service) -> None:
    await create(service, "a")
    before = time.monotonic()
    await run(service, "a", "1")
    live = service._sessions.get(Ref("tenant", "a"))
    assert live is not None
    assert live.last_used >= before

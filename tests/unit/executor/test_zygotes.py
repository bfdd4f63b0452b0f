import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from cellar_executor.kernel import KernelUnavailable
from cellar_executor.kernels import zygotes as zygotes_module
from cellar_executor.kernels.zygote import Zygote
from cellar_executor.kernels.zygotes import Zygotes


class FakeZygote:
    def __init__(self) -> None:
        self.load = self.made = 0
        self.kernels: set[object] = set()
        self.alive = self.open = True
        self.retired = self.closed = False
        self.worn = asyncio.Event()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        self.load += 1
        yield self.open
        self.load -= 1

    def die(self) -> None:
        self.alive = self.open = False
        self.worn.set()

    def retire(self) -> None:
        self.retired, self.open = True, False

    async def close(self) -> None:
        self.closed = True


class Workshop:
    """Starts fake zygotes; `problem` is why it cannot."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.retired: list[Any] = []
        self.problem: Exception | None = None

    async def make(self) -> Zygote:
        if self.problem is not None:
            raise self.problem
        self.made.append(FakeZygote())
        return cast(Zygote, self.made[-1])

    async def open(self, count: int = 2, recycle_after_s: float = 60) -> Zygotes:
        def on_retired(zygote: Zygote) -> None:
            self.retired.append(cast(FakeZygote, zygote))

        zygotes = Zygotes(self.make, count=count, recycle_after_s=recycle_after_s, on_retired=on_retired)
        await zygotes.open()
        await until(lambda: len(self.made) == count)
        return zygotes


@pytest.fixture
def workshop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setattr(zygotes_module, "RETRY_PAUSES_S", (0.01,))
    return Workshop()


async def until(holds: Callable[[], object]) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came about")


async def test_the_one_with_the_least_to_do_is_chosen(workshop: Workshop) -> None:
    zygotes = await workshop.open()
    first, second = workshop.made
    async with zygotes.turn() as one, zygotes.turn() as another:
        assert {one, another} == {first, second}
    first.kernels = {1}
    async with zygotes.turn() as chosen:
        assert chosen is second
    await zygotes.close()


async def test_a_worn_one_serves_until_its_successor_is_warm_and_is_then_retired(workshop: Workshop) -> None:
    zygotes = await workshop.open(count=1)
    workshop.problem = OSError("not now")
    (worn,) = workshop.made
    worn.worn.set()
    await asyncio.sleep(0.05)
    async with zygotes.turn() as chosen:
        assert chosen is worn
    workshop.problem = None
    await until(lambda: worn.retired)
    assert workshop.retired == [worn]
    async with zygotes.turn() as chosen:
        assert chosen is workshop.made[1]
    await zygotes.close()
    assert all(zygote.closed for zygote in workshop.made)


async def test_an_old_one_is_replaced(workshop: Workshop) -> None:
    zygotes = await workshop.open(count=1, recycle_after_s=0.05)
    await until(lambda: workshop.made[0].retired)
    await zygotes.close()


async def test_a_session_waits_for_the_successor_of_a_dead_one(workshop: Workshop) -> None:
    zygotes = await workshop.open(count=1)
    workshop.made[0].die()
    async with zygotes.turn() as chosen:
        assert chosen is workshop.made[1]
    await zygotes.close()


async def test_while_none_can_be_started_sessions_are_refused_with_the_reason_and_attempts_go_on(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    zygotes = await workshop.open(count=1)
    workshop.problem = KernelUnavailable("no memory")
    workshop.made[0].die()
    with pytest.raises(KernelUnavailable, match="no memory"):
        async with asyncio.timeout(5), zygotes.turn():
            pass
    workshop.problem = None
    await until(lambda: len(workshop.made) == 2)
    async with zygotes.turn() as chosen:
        assert chosen is workshop.made[1]
    assert "no memory; next attempt in 0.01 s" in caplog.text
    await zygotes.close()


async def test_nobody_waits_for_ever(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygotes_module, "WAIT_S", 0.01)
    zygotes = await workshop.open(count=1)
    workshop.made[0].open = False
    with pytest.raises(KernelUnavailable, match="no zygote"):
        async with zygotes.turn():
            pass
    await zygotes.close()


async def test_the_wait_is_bounded_and_not_the_turn(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygotes_module, "WAIT_S", 0.01)
    zygotes = await workshop.open(count=1)
    async with zygotes.turn():
        await asyncio.sleep(0.05)
    await zygotes.close()


async def test_work_in_advance_waits_while_there_is_enough_to_do(workshop: Workshop) -> None:
    zygotes = await workshop.open(count=1)
    begun = asyncio.Event()

    async def in_advance() -> None:
        async with zygotes.background_turn():
            begun.set()

    async with zygotes.turn():
        async with zygotes.turn():
            working = asyncio.create_task(in_advance())
            await asyncio.sleep(0.02)
            assert not begun.is_set()
        await asyncio.wait_for(begun.wait(), 5)
    await working
    await zygotes.close()


async def test_the_first_one_has_to_start_and_the_others_are_tried_again(workshop: Workshop) -> None:
    workshop.problem = KernelUnavailable("no memory")
    with pytest.raises(KernelUnavailable, match="no memory"):
        await workshop.open()
    workshop.problem = None
    make, calls = workshop.make, 0

    async def second_fails() -> Zygote:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("not now")
        return await make()

    workshop.make = second_fails  # type: ignore[method-assign]
    zygotes = await workshop.open()
    await zygotes.close()
    assert [zygote.closed for zygote in workshop.made] == [True, True]
    assert calls == 3

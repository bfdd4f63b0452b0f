import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio

from cellar_executor.kernel import KernelUnavailable
from cellar_executor.kernels import pool as pool_module
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.pool import Pool


class FakeKernel:
    def __init__(self) -> None:
        self.alive = True

    async def close(self) -> None:
        self.alive = False


class Maker:
    def __init__(self) -> None:
        self.made: list[Any] = []
        self.at_once = self.most_at_once = 0
        self.problem: Exception | None = None

    async def __call__(self) -> JailedKernel:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.problem is not None:
            raise self.problem
        self.made.append(FakeKernel())
        return cast(JailedKernel, self.made[-1])


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setattr(pool_module, "REFILL_AFTER_S", 0)
    monkeypatch.setattr(pool_module, "RETRY_PAUSE_S", 0)
    return Maker()


@pytest_asyncio.fixture
async def pool(maker: Maker) -> AsyncIterator[Pool]:
    pool = Pool(maker, size=4, workers=2)
    pool.open()
    await full(pool)
    yield pool
    await pool.close()


async def full(pool: Pool) -> None:
    deadline = time.monotonic() + 5
    while len(pool) < 4 and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert len(pool) == 4


async def test_it_is_filled_up_to_its_size_by_so_many_workers(pool: Pool, maker: Maker) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert (len(pool), len(maker.made), maker.most_at_once) == (4, 4, 2)


async def test_the_oldest_is_taken_first_and_replaced(pool: Pool, maker: Maker) -> None:
    assert [pool.take(), pool.take()] == maker.made[:2]
    await full(pool)
    assert len(maker.made) == 6


async def test_an_empty_pool_gives_nothing_at_once(maker: Maker) -> None:
    assert Pool(maker, size=4, workers=1).take() is None


async def test_what_died_while_it_waited_is_never_handed_out(pool: Pool, maker: Maker) -> None:
    maker.made[0].alive = False
    assert pool.take() is maker.made[1]
    await full(pool)


async def test_what_is_discarded_is_closed_and_replaced(pool: Pool, maker: Maker) -> None:
    unwanted = maker.made[1:3]
    pool.discard({cast(JailedKernel, kernel) for kernel in unwanted})
    await full(pool)
    await pool.close()
    assert len(maker.made) == 6
    assert not any(kernel.alive for kernel in unwanted)


async def test_what_died_is_replaced_when_others_are_discarded(pool: Pool, maker: Maker) -> None:
    for kernel in maker.made:
        kernel.alive = False
    pool.discard(set())
    await full(pool)
    assert [kernel.alive for kernel in maker.made[4:]] == [True] * 4


async def test_after_a_failure_it_tries_again(pool: Pool, maker: Maker, caplog: pytest.LogCaptureFixture) -> None:
    maker.problem = KernelUnavailable("no zygote")
    pool.take()
    for _ in range(10):
        await asyncio.sleep(0)
    maker.problem = None
    await full(pool)
    assert "no zygote" in caplog.text


async def test_closing_closes_all_and_makes_no_more(pool: Pool, maker: Maker) -> None:
    await pool.close()
    made = len(maker.made)
    assert not any(kernel.alive for kernel in maker.made)
    assert pool.take() is None
    await asyncio.sleep(0.01)
    assert len(maker.made) == made


async def test_a_pool_of_none_makes_none(maker: Maker) -> None:
    pool = Pool(maker, size=0, workers=2)
    pool.open()
    await asyncio.sleep(0)
    assert maker.made == []
    await pool.close()

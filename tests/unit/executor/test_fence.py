"""The fence around real spawners, with plain processes for kernels. With jails, and a stopped server: tests/sandbox."""

import asyncio
import os
import select
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from cellar_executor.kernel import KernelUnavailable
from cellar_executor.kernels.fence import Fence, now
from cellar_executor.kernels.launch import Plan, launch_zygote
from cellar_executor.kernels.spawning import Spawner, open_spawner

SLEEP = Plan(("/bin/sleep", "99"), {}, "/", b"", [], None)
SOON_S = 0.3
SLACK_S = 2.0
"""Far more than a signal takes, and far less than what sleeps."""


@pytest.fixture
def fence() -> Iterator[Fence]:
    fence = Fence()
    yield fence
    fence.close()


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@asynccontextmanager
async def spawner_with(fence: Fence) -> AsyncIterator[Spawner]:
    spawner, _ = await open_spawner([], fence)
    yield spawner
    await spawner.close()


async def start(spawner: Spawner, held: ExitStack) -> int:
    """A process's pidfd."""
    launched = await launch_zygote(spawner, SLEEP)
    held.callback(launched.control.close)
    for fd in (launched.pidfd, launched.log):
        held.callback(os.close, fd)
    return launched.pidfd


async def ended(pidfd: int, within_s: float) -> bool:
    readable, _, _ = await asyncio.to_thread(select.select, [pidfd], [], [], within_s)
    return bool(readable)


async def test_without_a_fence_nothing_ends(fence: Fence, held: ExitStack) -> None:
    async with spawner_with(fence) as spawner:
        assert not await ended(await start(spawner, held), SOON_S)
        assert not fence.fallen


async def test_at_the_time_the_spawner_is_killed_and_what_it_started(fence: Fence, held: ExitStack) -> None:
    async with spawner_with(fence) as spawner:
        process = await start(spawner, held)
        fence.put_off(now() + SOON_S)
        assert not await ended(process, SOON_S / 3)
        assert await ended(process, SLACK_S)
        assert fence.fallen
        await asyncio.sleep(0)
        with pytest.raises(KernelUnavailable):
            await start(spawner, held)
        assert not spawner.alive


async def test_it_is_put_off_from_any_thread(fence: Fence, held: ExitStack) -> None:
    async with spawner_with(fence) as spawner:
        process = await start(spawner, held)
        for _ in range(10):
            fence.put_off(now() + SOON_S)
            await asyncio.sleep(SOON_S / 6)
        thread = threading.Thread(target=fence.put_off, args=(now() + 60,))
        thread.start()
        thread.join()
        assert not await ended(process, 2 * SOON_S)
        await start(spawner, held)


async def test_a_time_that_has_passed_kills_at_once(fence: Fence, held: ExitStack) -> None:
    async with spawner_with(fence) as spawner:
        process = await start(spawner, held)
        fence.put_off(now() + 60)
        fence.put_off(0)
        assert await ended(process, SLACK_S)


async def test_a_fence_that_fell_kills_however_soon_it_is_put_off_again(fence: Fence, held: ExitStack) -> None:
    async with spawner_with(fence) as spawner:
        process = await start(spawner, held)
        os.kill(spawner._process.pid, signal.SIGSTOP)  # so that it cannot hear of the time in between
        fence.put_off(0)
        fence.put_off(now() + 60)
        assert await ended(process, SLACK_S)
    async with spawner_with(fence) as spawner:
        assert not await ended(await start(spawner, held), SOON_S)


async def test_a_stopped_spawner_is_killed_too(fence: Fence, held: ExitStack) -> None:
    """As Ctrl-Z stops it, with the server."""
    async with spawner_with(fence) as spawner:
        process = await start(spawner, held)
        fence.put_off(now() + SOON_S)
        await start(spawner, held)  # it has heard of the time
        os.kill(spawner._process.pid, signal.SIGSTOP)
        assert await ended(process, SOON_S + SLACK_S)


async def test_a_stopped_spawner_hears_the_latest_of_however_many_times(fence: Fence, held: ExitStack) -> None:
    async with spawner_with(fence) as spawner:
        process = await start(spawner, held)
        os.kill(spawner._process.pid, signal.SIGSTOP)
        for number in range(100_000):
            fence.put_off(now() + number)
        fence.put_off(now() + SOON_S)
        os.kill(spawner._process.pid, signal.SIGCONT)
        assert await ended(process, SOON_S + SLACK_S)


async def test_the_next_spawner_starts_with_the_time_in_force(fence: Fence, held: ExitStack) -> None:
    fence.put_off(now() + 3)
    async with spawner_with(fence) as spawner:
        process = await start(spawner, held)
        assert await ended(process, 3 + SLACK_S)
    fence.put_off(now() + 60)
    async with spawner_with(fence) as spawner:
        assert not await ended(await start(spawner, held), SOON_S)
        fence.put_off(0)


async def test_a_closed_fence_takes_no_more_times() -> None:
    fence = Fence()
    fence.close()
    fence.put_off(now() + 60)
    fence.close()

"""The supervisor's end, against a process that does nothing and a test that answers for it."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from typing import cast

import pytest
import pytest_asyncio

from cellar_executor.kernel import KernelUnavailable
from cellar_executor.kernels import zygote as zygote_module
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.launch import LaunchedZygote
from cellar_executor.kernels.zygote import Zygote


class OtherEnd:
    """What the zygote sees."""

    def __init__(self, capacity: int = 10) -> None:
        control, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(5)
        self.process = subprocess.Popen(["sleep", "60"])
        self.released = 0
        log = os.memfd_create("log")
        os.write(log, b"what it said")
        launched = LaunchedZygote(os.pidfd_open(self.process.pid), control, log)
        self.zygote = Zygote(launched, capacity=capacity, release=self._release)

    async def _release(self) -> None:
        self.released += 1

    async def request(self) -> tuple[bytes, list[int]]:
        message, fds, _, _ = await asyncio.to_thread(socket.recv_fds, self.socket, 16, 4)
        return message, fds

    def answer(self, pidfd: int) -> None:
        socket.send_fds(self.socket, [b"F"], [pidfd])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    async def clean_up(self) -> None:
        self.end()
        await self.zygote.close()
        self.socket.close()


@pytest_asyncio.fixture
async def other() -> AsyncIterator[OtherEnd]:
    other = OtherEnd()
    yield other
    await other.clean_up()


async def test_it_is_warm_when_it_says_so(other: OtherEnd) -> None:
    other.socket.send(b"R")
    await other.zygote.warm(5)
    assert other.zygote.open


async def test_one_that_dies_before_is_reported_with_what_it_said_and_gives_back_what_it_held(other: OtherEnd) -> None:
    other.end()
    with pytest.raises(KernelUnavailable, match="it died: what it said"):
        await other.zygote.warm(5)
    assert other.released == 1


async def test_one_that_takes_too_long_is_killed(other: OtherEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote_module, "END_TIMEOUT_S", 0.01)
    with pytest.raises(KernelUnavailable, match="not warm after"):
        await other.zygote.warm(0.01)
    assert other.process.wait() == -signal.SIGKILL


async def test_a_request_is_one_byte_and_one_socket_and_nothing_else(other: OtherEnd) -> None:
    cloning = asyncio.create_task(other.zygote.clone(1))
    message, fds = await other.request()
    assert (message, len(fds)) == (b"F", 1)
    assert os.fstat(fds[0]) == os.fstat(1)
    other.answer(os.pidfd_open(os.getpid()))
    assert os.readlink(f"/proc/self/fd/{await cloning}") == "anon_inode:[pidfd]"


async def test_answers_come_in_the_order_of_the_requests_also_past_one_that_was_given_up(other: OtherEnd) -> None:
    given_up, second, third = (asyncio.create_task(other.zygote.clone(1)) for _ in range(3))
    await asyncio.sleep(0)
    given_up.cancel()
    before = len(os.listdir("/proc/self/fd"))
    other.answer(0)
    other.socket.send(b"Eits uids are used up")
    other.answer(1)
    with pytest.raises(KernelUnavailable, match="its uids are used up"):
        await second
    assert os.fstat(await third) == os.fstat(1)
    assert len(os.listdir("/proc/self/fd")) == before + 1


async def test_its_death_ends_the_wait_of_all(other: OtherEnd) -> None:
    waiting = [asyncio.create_task(other.zygote.clone(1)) for _ in range(2)]
    await asyncio.sleep(0)
    other.end()
    for clone in waiting:
        with pytest.raises(KernelUnavailable, match="died"):
            await clone
    assert other.zygote.worn.is_set()
    assert not other.zygote.open


async def test_one_whose_socket_is_closed_is_dead_before_its_caller_hears_of_it(other: OtherEnd) -> None:
    other.socket.close()
    with pytest.raises(KernelUnavailable, match="died"):
        await other.zygote.clone(1)
    assert not other.zygote.alive


async def test_its_death_is_noticed_without_a_mishap_however_it_shows_first(other: OtherEnd) -> None:
    mishaps: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mishaps.append(context))
    other.socket.close()
    other.end()
    other.zygote._on_answer()
    await other.zygote.close()
    assert (mishaps, other.released) == ([], 1)


async def test_one_that_does_not_answer_is_killed(other: OtherEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote_module, "CLONE_TIMEOUT_S", 0.01)
    with pytest.raises(KernelUnavailable, match="does not answer"):
        await other.zygote.clone(1)
    assert await asyncio.to_thread(other.process.wait) == -signal.SIGKILL


async def test_it_grants_no_more_turns_than_it_has_uids_and_says_in_time_that_it_wears_out() -> None:
    other = OtherEnd(capacity=10)
    granted = []

    async def make() -> None:
        async with other.zygote.turn() as granted_one:
            granted.append(granted_one)
            await asyncio.sleep(0)

    await asyncio.gather(*(make() for _ in range(8)))
    assert not other.zygote.worn.is_set()
    await asyncio.gather(*(make() for _ in range(4)))
    assert other.zygote.worn.is_set()
    assert not other.zygote.open
    assert granted == [True] * 10 + [False] * 2
    await other.clean_up()


async def test_a_closed_one_is_not_asked(other: OtherEnd) -> None:
    other.end()
    await other.zygote.close()
    with pytest.raises(KernelUnavailable, match="gone"):
        await other.zygote.clone(1)


async def test_a_few_clones_are_made_at_a_time(other: OtherEnd) -> None:
    inside = 0

    async def make() -> None:
        nonlocal inside
        async with other.zygote.turn():
            inside += 1
            await asyncio.sleep(0.01)
            assert inside <= zygote_module.CLONES_AT_ONCE
            inside -= 1

    await asyncio.gather(*(make() for _ in range(10)))
    assert other.zygote.load == 0


async def test_a_retired_one_ends_with_its_last_session(other: OtherEnd) -> None:
    kernel = cast(JailedKernel, object())
    other.zygote.adopt(kernel)
    async with other.zygote.turn():
        other.zygote.retire()
        other.zygote.forget(kernel)
        assert other.zygote.alive
    assert not other.zygote.alive
    other.end()  # at the end of its socket, as a zygote does
    await other.zygote.close()
    assert (other.released, other.socket.recv(1)) == (1, b"")


async def test_closing_twice_gives_back_once(other: OtherEnd) -> None:
    other.end()
    await asyncio.gather(other.zygote.close(), other.zygote.close())
    assert (other.released, other.zygote.closed) == (1, True)

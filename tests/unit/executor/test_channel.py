import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cellar_executor.kernels import channel
from cellar_executor.kernels.channel import KernelChannel


class Ends:
    """A channel and the kernel's end of it; `broken` counts breaches of the protocol."""

    def __init__(self) -> None:
        control, self.kernel = socket.socketpair()
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.broken = 0
        self.channel = KernelChannel(control, 100, self.on_broken)

    def on_broken(self) -> None:
        self.broken += 1

    def say(self, payload: bytes, fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self.kernel, [len(payload).to_bytes(4, "big") + payload], fds)


@pytest_asyncio.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    yield ends
    ends.channel.close()
    ends.kernel.close()


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_the_first_word_may_come_before_anybody_listens(ends: Ends) -> None:
    ends.say(b"ready")
    await asyncio.sleep(0.01)
    assert await asyncio.wait_for(ends.channel.first(), 1) == b"ready"
    assert ends.broken == 0


async def test_a_second_word_unasked_breaks_the_protocol(ends: Ends) -> None:
    ends.say(b"ready")
    ends.say(b"more")
    await asyncio.sleep(0.01)
    assert ends.broken == 1


async def test_a_flood_of_words_is_heard_once(ends: Ends) -> None:
    ends.say(b"ready")
    await ends.channel.first()
    ends.kernel.send(bytes(4000))  # a thousand empty frames
    await asyncio.sleep(0.01)
    assert ends.broken == 1


async def test_a_request_that_is_never_read_ends_with_the_channel(ends: Ends) -> None:
    ends.say(b"ready")
    await ends.channel.first()
    asked = asyncio.create_task(ends.channel.ask(bytes(10_000_000)))
    await asyncio.sleep(0.05)
    assert not asked.done()
    ends.channel.close()  # while the other end stays open
    assert await asyncio.wait_for(asked, 1) is None
    assert ends.broken == 0


async def test_a_kernel_that_dies_over_a_request_answers_none(ends: Ends) -> None:
    ends.say(b"ready")
    await ends.channel.first()
    asked = asyncio.create_task(ends.channel.ask(bytes(10_000_000)))
    await asyncio.sleep(0.05)
    ends.kernel.close()
    ends.channel.close()
    assert await asyncio.wait_for(asked, 1) is None
    assert await ends.channel.ask(b"") is None


async def test_fds_go_with_a_request(ends: Ends) -> None:
    ends.say(b"ready")
    await ends.channel.first()
    asked = asyncio.create_task(ends.channel.ask(b"question", [0, 1]))
    await asyncio.sleep(0)
    data, fds, _, _ = socket.recv_fds(ends.kernel, 100, 3)
    assert (data[4:], len(fds)) == (b"question", 2)
    ends.say(b"answer")
    assert await asked == b"answer"
    for fd in fds:
        os.close(fd)


async def test_a_kernel_that_reads_nothing_breaks_the_protocol(ends: Ends) -> None:
    ends.say(b"ready")
    await ends.channel.first()
    ends.channel._socket.send(bytes(1 << 20))
    asked = asyncio.create_task(ends.channel.ask(b"question"))
    await asyncio.sleep(0.01)
    assert ends.broken == 1
    ends.channel.close()
    assert await asked is None


@pytest.mark.parametrize("passpidfd", [channel.SO_PASSPIDFD, 10_000], ids=["linux-6.5", "older"])
async def test_fds_that_a_kernel_sends_are_not_kept(monkeypatch: pytest.MonkeyPatch, passpidfd: int) -> None:
    monkeypatch.setattr(channel, "SO_PASSPIDFD", passpidfd)
    before = open_fds()
    ends = Ends()
    ends.say(b"ready", (0, 1, 2))
    assert await ends.channel.first() == b"ready"
    assert ends.channel.peer_pid == os.getpid()
    ends.channel.close()
    ends.kernel.close()
    assert open_fds() == before


async def test_a_closed_channel_answers_at_once(ends: Ends) -> None:
    ends.channel.close()
    ends.channel.close()
    assert await ends.channel.first() is None
    assert await ends.channel.ask(b"question") is None

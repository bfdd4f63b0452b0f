"""The supervisor's end of one zygote: asks for clones, and notices its end."""

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from cellar_executor.kernel import KernelUnavailable
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.launch import LaunchedZygote, read_log

FORK, READY, REFUSED = b"F", b"R", b"E"
MAX_DATAGRAM = 1024
CLONES_AT_ONCE = 4
"""That one zygote has in the making: while one is forked the others confine themselves."""
WORN = 0.9
"""The part of its capacity after which a zygote needs a successor soon."""
CLONE_TIMEOUT_S = 20.0
END_TIMEOUT_S = 2.0


class Zygote:
    """Nothing but this object speaks to it, and nothing that it is sent is of any session: an opcode, and a socket.

    `capacity`: how many clones it makes. `release` gives back what it held on the host, when it is dead.
    """

    def __init__(self, launched: LaunchedZygote, *, capacity: int, release: Callable[[], Awaitable[None]]) -> None:
        self.capacity = capacity
        self.made = 0
        self.load = 0
        """Requests that it has, those that wait included."""
        self.kernels: set[JailedKernel] = set()
        """Its clones that live."""
        self.retired = False
        self.worn = asyncio.Event()
        """It is dead, or will not do for much longer."""
        self._pidfd = launched.pidfd
        self._control = launched.control
        self._log = launched.log
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._turns = asyncio.Semaphore(CLONES_AT_ONCE)
        self._answers: deque[asyncio.Future[int]] = deque()
        self._warm: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._closing: asyncio.Task[None] | None = None
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._on_answer)
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def alive(self) -> bool:
        return not self._gone.done() and self._closing is None

    @property
    def closed(self) -> bool:
        return self._closing is not None and self._closing.done()

    @property
    def open(self) -> bool:
        """Whether it makes another clone."""
        return self.alive and not self.retired and self.made < self.capacity

    async def warm(self, timeout_s: float) -> None:
        """Wait until it is. Raises `KernelUnavailable` with its log, and it is dead then."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait((self._warm, self._gone), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as exc:
            raise await self._failed(f"it is not warm after {timeout_s:g} s") from exc
        except BaseException:
            await self.close()
            raise
        if not self._warm.done():
            raise await self._failed("it died")

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """One of the few clones that it makes at a time; first come, first served. False: it makes no more."""
        self.load += 1
        try:
            async with self._turns:
                granted = self.open
                if granted:
                    self._count()
                yield granted
        finally:
            self.load -= 1
            self._close_if_unused()

    async def clone(self, control: int) -> int:
        """In a turn: a clone's pidfd; `control` becomes its end of a control channel. Raises `KernelUnavailable`."""
        if not self.alive:
            raise KernelUnavailable("the zygote is gone")
        try:
            socket.send_fds(self._control, [FORK], [control])
        except ConnectionError as exc:
            self._kill()  # it is dying: its socket is closed before its pidfd tells
            await asyncio.shield(self._gone)
            raise KernelUnavailable("the zygote died") from exc
        except OSError as exc:
            raise KernelUnavailable(f"the zygote takes no request: {exc.strerror}") from exc
        answer: asyncio.Future[int] = self._loop.create_future()
        self._answers.append(answer)
        try:
            return await asyncio.wait_for(answer, CLONE_TIMEOUT_S)
        except TimeoutError as exc:
            self._kill()  # it is stuck, and answers come in order
            raise KernelUnavailable("the zygote does not answer") from exc

    def adopt(self, kernel: JailedKernel) -> None:
        self.kernels.add(kernel)

    def forget(self, kernel: JailedKernel) -> None:
        """It is dead."""
        self.kernels.discard(kernel)
        self._close_if_unused()

    def retire(self) -> None:
        """No more clones; it ends with the last one that lives."""
        self.retired = True
        self._close_if_unused()

    async def close(self) -> None:
        """It ends, and all its clones with it."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    def _count(self) -> None:
        """A clone, before it is made: several are made at a time."""
        self.made += 1
        if self.made >= WORN * self.capacity:
            self.worn.set()

    async def _close(self) -> None:
        if not self._gone.done():
            self._control.shutdown(socket.SHUT_RDWR)
            _, waiting = await asyncio.wait((self._gone,), timeout=END_TIMEOUT_S)
            if waiting:
                self._kill()
                await self._gone
        os.close(self._pidfd)
        os.close(self._log)
        await self._release()

    def _close_if_unused(self) -> None:
        if self.retired and not self.kernels and not self.load and self._closing is None:
            self._closing = self._loop.create_task(self._close())

    async def _failed(self, how: str) -> KernelUnavailable:
        said = read_log(self._log)
        await self.close()
        return KernelUnavailable(f"a zygote did not start: {how}: {said or 'it said nothing'}")

    def _kill(self) -> None:
        if not self._gone.done():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _on_answer(self) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(self._control, MAX_DATAGRAM, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            message, fds = b"", []
        if not message:
            self._loop.remove_reader(self._control)
            self._kill()
        elif message == READY and not self._warm.done():
            self._warm.set_result(None)
        else:
            self._settle(self._answers.popleft(), message, fds)

    def _settle(self, answer: asyncio.Future[int], message: bytes, fds: list[int]) -> None:
        if answer.done():
            for fd in fds:  # nobody waits any more; without its channel the clone ends
                os.close(fd)
        elif message == FORK and len(fds) == 1:
            answer.set_result(fds[0])
        else:
            said = message.removeprefix(REFUSED).decode("utf-8", "replace")
            answer.set_exception(KernelUnavailable(f"the zygote made no clone: {said}"))

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._control)
        self._control.close()
        self._gone.set_result(None)
        self.worn.set()
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(KernelUnavailable("the zygote died"))

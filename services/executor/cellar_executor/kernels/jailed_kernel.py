"""A kernel as the supervisor holds it: asks, listens, watches the clock, and judges from outside what became of a cell.

How its process was made is not known here: it takes a `KernelProcess`, whatever isolates that.
"""

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from cellar_client.schemas import FileInfo
from cellar_executor.kernel import CellOutcome, KernelUnavailable, OnOutput, OutcomeStatus
from cellar_executor.kernels import session_files
from cellar_executor.kernels.channel import KernelChannel, close_all
from cellar_executor.kernels.launch import control_pair, pipe
from cellar_executor.kernels.output import OutputStream
from cellar_executor.kernels.protocol import (
    MAX_REPLY_BYTES,
    CellReply,
    Done,
    Failed,
    ProtocolError,
    Reply,
    Started,
    parse,
    request,
)
from cellar_executor.kernels.shared_jail import DeathCause, SharedJail
from cellar_executor.kernels.usage import Usage

START_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 30.0
"""Of all requests but cells."""
PIDFD_SIGNAL_PROCESS_GROUP = 4
"""Of Linux 6.9."""

R = TypeVar("R", bound=Reply)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KernelProcess:
    """The running process: what is needed to talk to it, to kill it and to judge its death."""

    pidfd: int
    """Of what ends with the session's pid namespace: nsjail, or the kernel itself. Its end is the session's end."""
    control: socket.socket
    stdout: int
    stderr: int
    usage: Callable[[], Usage]
    """What the session has used so far."""
    release: Callable[[], Awaitable[None]]
    """Gives back what the session held on the host; called once, when its processes are dead."""
    kernel_pidfd: int | None = None
    """Of the kernel itself, where it is known; else it is taken from who sends the first frame."""


class JailedKernel:
    """Implements `cellar_executor.kernel.Kernel`. Call `ready` before the first cell.

    A live copy (`fork`) has a channel, pipes and a process of its own in the jail of its origin. Closing either ends
    that one alone, and the last one the jail. The origin's process is the first one in there: when it is killed or dies
    all die with it; closed before its copies, it takes no more cells and waits for their end.
    """

    def __init__(
        self,
        process: KernelProcess,
        *,
        output_bytes: int,
        interrupt_grace_s: float,
        origins_jail: SharedJail | None = None,
    ) -> None:
        self._process = process
        self._grace_s = interrupt_grace_s
        self._loop = asyncio.get_running_loop()
        self._is_copy = origins_jail is not None
        self._jail = origins_jail or SharedJail(process.pidfd, process.usage, process.release)
        self._jail.join(self)
        self._channel = KernelChannel(process.control, MAX_REPLY_BYTES, self.kill)
        self._stdout = OutputStream(process.stdout, output_bytes)
        self._stderr = OutputStream(process.stderr, output_bytes)
        self._pidfd = process.kernel_pidfd
        if self._pidfd is not None:
            self._jail.first_pidfd = self._pidfd
        self._timers: list[asyncio.TimerHandle] = []
        self._in_cell = False
        self._timed_out = False
        self._leftovers = False
        self._before = self._jail.usage()
        self._cause: DeathCause | None = None
        self.alive = True
        self._gone: asyncio.Future[None] = self._loop.create_future()

    @property
    def pid(self) -> int | None:
        """The kernel's process as the host numbers it; None before it is ready."""
        return self._channel.peer_pid

    @property
    def output_bytes(self) -> int:
        return self._stdout.limit

    @output_bytes.setter
    def output_bytes(self, limit: int) -> None:
        self._stdout.limit = self._stderr.limit = limit

    async def ready(self) -> None:
        """Wait until the kernel says that it runs. Raises `KernelUnavailable`, and it is dead then."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                check_ready(await self._channel.first())
                await self._identify()
        except (TimeoutError, ProtocolError, ProcessLookupError) as exc:
            await self.close()
            raise KernelUnavailable(f"a kernel died while it started ({exc})") from exc
        except asyncio.CancelledError:
            self._give_up()
            raise

    async def seed(self, seed: int | None) -> None:
        """Seed its generators; None: from the system. Raises `KernelUnavailable`, and it is dead then."""
        reply = await self._ask(Done, "seed", seed=seed)
        if reply.problem is not None:
            await self.close()
            raise KernelUnavailable(f"the session could not be seeded: {reply.problem}")

    async def run_cell(
        self, code: str, *, timeout_s: float, stdin: str = "", on_output: OnOutput | None = None
    ) -> CellOutcome:
        if self._gone.done():
            return CellOutcome("killed", "", "", None, None, 0.0, truncated=False)
        nonce = secrets.token_hex(8)
        pipes = self._renewed_output()
        started = self._begin_cell(timeout_s, on_output)
        try:
            answer = await self._channel.ask(request("run", nonce, code=code, stdin=stdin), pipes)
            duration_s = time.monotonic() - started
        finally:
            self._end_cell()
            close_all(pipes)
        return self._outcome(await self._believe(CellReply, answer, nonce), duration_s)

    async def put_file(self, path: str, data: bytes) -> None:
        await in_time(session_files.put_file(self._ask, path, data))

    async def get_file(self, path: str, *, max_bytes: int) -> bytes:
        return await in_time(session_files.get_file(self._ask, path, max_bytes))

    async def list_files(self, *, max_files: int) -> tuple[list[FileInfo], bool]:
        return await session_files.list_files(self._ask, max_files)

    async def delete_file(self, path: str) -> None:
        await session_files.delete_file(self._ask, path)

    async def fork(self) -> "JailedKernel":
        with ExitStack() as theirs:
            copy, fds = self._prepare_copy(theirs)
            try:
                reply = await self._ask(Done, "fork", fds)
            except BaseException:
                copy._give_up()
                raise
        if reply.problem is not None:
            await copy.close()
            raise KernelUnavailable(f"the session could not be copied: {reply.problem}")
        await copy.ready()
        return copy

    def interrupt(self) -> None:
        if self._in_cell and self.alive and self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGINT)

    def kill(self, cause: DeathCause | None = None) -> None:
        """SIGKILL: a copy and its children, or with the origin all of the jail. Without a cause one is found."""
        self.alive = False
        self._cause = self._cause or cause
        if self._gone.done():
            return
        if not self._is_copy:
            self._jail.kill()
        elif self._pidfd is None:
            self._finish()  # it never was a kernel; the end of its channel ends it
        else:
            kill_with_group(self._pidfd)

    def kill_jail(self, cause: DeathCause | None = None) -> None:
        """SIGKILL everything in the jail, closed kernels and copies included."""
        self._jail.kill(cause)

    async def close(self) -> None:
        self._give_up()
        await asyncio.shield(self._gone)
        if not self._jail.in_use:
            await self._jail.ended()

    async def close_jail(self) -> None:
        """`close`, of all copies too."""
        self.kill_jail()
        await self._jail.ended()

    # --- one cell ---

    def _begin_cell(self, timeout_s: float, on_output: OnOutput | None) -> float:
        self._stdout.begin(None if on_output is None else partial(on_output, "stdout"))
        self._stderr.begin(None if on_output is None else partial(on_output, "stderr"))
        self._in_cell = True
        self._timed_out = False
        self._before = self._jail.usage()
        self._timers = [self._loop.call_later(timeout_s, self._on_deadline)]
        return time.monotonic()  # the loop's own clock is cached, and coarse

    def _on_deadline(self) -> None:
        self._timed_out = True
        self.interrupt()
        self._timers.append(self._loop.call_later(self._grace_s, self.kill, "timeout"))

    def _end_cell(self) -> None:
        self._in_cell = False
        for timer in self._timers:
            timer.cancel()

    def _renewed_output(self) -> Sequence[int]:
        """Write ends of fresh pipes, when other processes may hold the old ones: their late output is no cell's."""
        if not self._leftovers:
            return ()
        return (self._stdout.renew(), self._stderr.renew())

    def _outcome(self, reply: CellReply | None, duration_s: float) -> CellOutcome:
        stdout, stderr = self._stdout.finish(), self._stderr.finish()
        usage = self._jail.usage()
        status: OutcomeStatus = self._cause or "killed"
        if reply is not None:
            self._leftovers = reply.leftovers
            status = "timeout" if self._timed_out else reply.status
        return CellOutcome(
            status,
            stdout.text(),
            stderr.text(),
            None if reply is None else reply.result,
            None if reply is None else reply.error,
            duration_s,
            stdout.cut > 0 or stderr.cut > 0,
            usage.cpu_since(self._before),
            usage.peak_memory_bytes,
        )

    # --- requests ---

    async def _ask(self, kind: type[R], op: str, fds: Sequence[int] = (), **arguments: Any) -> R:
        """Raises `KernelUnavailable` when the kernel is dead, or dies instead of answering."""
        if not self.alive:
            raise KernelUnavailable("the session's kernel is dead")
        nonce = secrets.token_hex(8)
        deadline = self._loop.call_later(REQUEST_TIMEOUT_S, self.kill)
        try:
            answer = await self._channel.ask(request(op, nonce, **arguments), fds)
        finally:
            deadline.cancel()
        reply = await self._believe(kind, answer, nonce)
        if reply is None:
            raise KernelUnavailable("the session's kernel died")
        return reply

    async def _believe(self, kind: type[R], answer: bytes | None, nonce: str) -> R | None:
        """The reply, if it is well-formed and to this very request. Else the kernel is dead when this returns."""
        try:
            reply = parse(kind, answer)
        except ProtocolError:
            reply = None
        if reply is None or reply.nonce != nonce:
            self.kill()
            await asyncio.shield(self._gone)
            return None
        return reply

    # --- copies ---

    def _prepare_copy(self, theirs: ExitStack) -> tuple["JailedKernel", Sequence[int]]:
        """Our side of a copy, and the fds for its own; those go with `theirs`."""
        with ExitStack() as ours:
            control, copys_end = control_pair(ours, theirs)
            stdout, stdout_end = pipe(ours, theirs)
            stderr, stderr_end = pipe(ours, theirs)
            process = replace(self._process, control=control, stdout=stdout, stderr=stderr, kernel_pidfd=None)
            copy = JailedKernel(
                process, output_bytes=self.output_bytes, interrupt_grace_s=self._grace_s, origins_jail=self._jail
            )
            ours.pop_all()
        return copy, (copys_end, stdout_end, stderr_end)

    async def _identify(self) -> None:
        if self._pidfd is not None:
            self._channel.stop_identifying()
            return
        self._pidfd = await self._channel.identify(request("ping", ""))
        if self._is_copy:
            self._loop.add_reader(self._pidfd, self._finish)
        else:
            self._jail.first_pidfd = self._pidfd

    # --- the end ---

    def _give_up(self) -> None:
        """Nobody needs this kernel any more."""
        self._jail.leave(self)
        if not self._jail.in_use:
            self.kill()
            self._jail.kill()
        elif self._is_copy:
            self.kill()
        else:
            self._retire()

    def _retire(self) -> None:
        """The jail lives on for the copies, and this process as its first, out of reach."""
        if not self._gone.done():
            self.interrupt()
            self._channel.tell(request("retire", ""))
            self._end()

    def on_jail_end(self) -> None:
        if self._is_copy:
            self.kill()  # where no pid namespace did
        self._finish()
        self._channel.close()

    def _finish(self) -> None:
        """The process is dead, or good as dead."""
        if self._gone.done():
            return
        if self._is_copy and self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._channel.close()
        self._jail.forget(self)
        self._end()

    def _end(self) -> None:
        self.alive = False
        oom = self._jail.usage().oom_kills > self._before.oom_kills
        self._cause = self._cause or self._jail.cause or ("oom" if oom else "killed")
        self._stdout.close()
        self._stderr.close()
        self._gone.set_result(None)


async def in_time(requests: Awaitable[T]) -> T:
    """All requests of one operation within the time of one: the kernel dies of the one that is cut off."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return await requests
    except TimeoutError as exc:
        raise KernelUnavailable("the session's kernel does not answer") from exc


def check_ready(first: bytes | None) -> None:
    """Raises `ProtocolError`, with what the process said if it failed."""
    started = parse(Started, first).root
    if isinstance(started, Failed):
        raise ProtocolError(started.failed)


def kill_with_group(pidfd: int) -> None:
    """SIGKILL a process and those of its group; before Linux 6.9 the process alone."""
    for flags in (PIDFD_SIGNAL_PROCESS_GROUP, 0):
        with suppress(OSError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, flags)

"""A kernel as the supervisor holds it: asks, listens, watches the clock, and judges from outside what became of a cell.

How its process was made is not known here: it takes a `KernelProcess`, whatever isolates that.
"""

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from cellar_executor.kernel import CellOutcome, KernelUnavailable
from cellar_executor.kernels.channel import KernelChannel
from cellar_executor.kernels.output import OutputStream
from cellar_executor.kernels.protocol import (
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    CellReply,
    PutReply,
    Ready,
    put_request,
    run_request,
)

START_TIMEOUT_S = 30.0
PUT_TIMEOUT_S = 30.0

DeathCause = Literal["timeout", "oom", "killed"]
R = TypeVar("R", CellReply, PutReply)
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class KernelProcess:
    """The running process: what is needed to talk to it, to kill it and to judge its death."""

    pidfd: int
    """Of what the spawner started: nsjail, or the kernel itself. Its end is the session's end."""
    control: socket.socket
    stdout: int
    stderr: int
    oom_kills: Callable[[], int]
    """How many processes of the session the memory limit has killed so far."""
    release: Callable[[], Awaitable[None]]
    """Gives back what the session held on the host; called once, when its processes are dead."""


class JailedKernel:
    """Implements `cellar_executor.kernel.Kernel`. Call `ready` before the first cell."""

    def __init__(self, process: KernelProcess, *, output_bytes: int, interrupt_grace_s: float) -> None:
        self._process = process
        self._grace_s = interrupt_grace_s
        self._loop = asyncio.get_running_loop()
        self._channel = KernelChannel(process.control, MAX_REPLY_BYTES, self.kill)
        self._stdout = OutputStream(process.stdout, output_bytes)
        self._stderr = OutputStream(process.stderr, output_bytes)
        self._main_pidfd: int | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._in_cell = False
        self._timed_out = False
        self._oom_kills_before = 0
        self._cause: DeathCause | None = None
        self.alive = True
        self._released: asyncio.Future[None] = self._loop.create_future()
        self._releasing: asyncio.Task[None] | None = None
        self._loop.add_reader(process.pidfd, self._on_exit)

    @property
    def pid(self) -> int | None:
        """The kernel's process as the host numbers it; None before it is ready."""
        return self._channel.peer_pid

    async def ready(self) -> None:
        """Wait until the kernel says that it runs. Raises `KernelUnavailable`, and it is dead then."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                parse(Ready, await self._channel.receive())
                assert self._channel.peer_pid is not None
                self._main_pidfd = os.pidfd_open(self._channel.peer_pid)
        except (TimeoutError, ProtocolError, ProcessLookupError) as exc:
            await self.close()
            raise KernelUnavailable("a kernel died while it started") from exc
        except asyncio.CancelledError:
            self.kill()
            raise

    async def run_cell(self, code: str, *, timeout_s: float, stdin: str = "") -> CellOutcome:
        if not self.alive:
            return CellOutcome("killed", "", "", None, None, 0.0, False)
        nonce = secrets.token_hex(8)
        started = self._begin_cell(timeout_s)
        try:
            answer = await self._channel.ask(run_request(nonce, code, stdin))
        except asyncio.CancelledError:
            self.kill()  # nobody knows how far the cell came
            raise
        finally:
            self._end_cell()
        reply = await self._believe(CellReply, answer, nonce)
        return self._outcome(reply, time.monotonic() - started)

    async def put_file(self, path: str, data: bytes) -> None:
        nonce = secrets.token_hex(8)
        request = put_request(nonce, path, data)
        if len(request) > MAX_REQUEST_BYTES:
            raise ValueError(f"{path!r}: a file of {len(data)} bytes is too long to be sent to a kernel")
        deadline = self._loop.call_later(PUT_TIMEOUT_S, self.kill)
        try:
            answer = await self._channel.ask(request)
        finally:
            deadline.cancel()
        reply = await self._believe(PutReply, answer, nonce)
        if reply is None:
            raise ValueError(f"{path!r}: the session died")
        if reply.problem is not None:
            raise ValueError(reply.problem)

    def interrupt(self) -> None:
        if self._in_cell and self.alive and self._main_pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._main_pidfd, signal.SIGINT)

    def kill(self, cause: DeathCause | None = None) -> None:
        """SIGKILL the jail's first process, and with it its pid namespace. Without a cause, `_on_exit` finds one."""
        self.alive = False
        self._cause = self._cause or cause
        first = self._process.pidfd if self._main_pidfd is None else self._main_pidfd
        if not self._releasing:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(first, signal.SIGKILL)

    async def close(self) -> None:
        self.kill()
        await asyncio.shield(self._released)

    # --- one cell ---

    def _begin_cell(self, timeout_s: float) -> float:
        self._stdout.begin()
        self._stderr.begin()
        self._in_cell = True
        self._timed_out = False
        self._oom_kills_before = self._process.oom_kills()
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

    def _outcome(self, reply: CellReply | None, duration_s: float) -> CellOutcome:
        stdout, stderr = self._stdout.finish(), self._stderr.finish()
        truncated = stdout.cut > 0 or stderr.cut > 0
        if reply is None:
            status = self._cause or "killed"
            return CellOutcome(status, stdout.text(), stderr.text(), None, None, duration_s, truncated)
        return CellOutcome(
            "timeout" if self._timed_out else reply.status,
            stdout.text(),
            stderr.text(),
            reply.result,
            reply.error,
            duration_s,
            truncated,
        )

    async def _believe(self, kind: type[R], answer: bytes | None, nonce: str) -> R | None:
        """The reply, if it is well-formed and to this very request. Else the kernel is dead when this returns."""
        try:
            reply = parse(kind, answer)
        except ProtocolError:
            reply = None
        if reply is None or reply.nonce != nonce:
            await self.close()
            return None
        return reply

    # --- the end ---

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._process.pidfd)
        self.alive = False
        oom = self._process.oom_kills() > self._oom_kills_before
        self._cause = self._cause or ("oom" if oom else "killed")
        self._stdout.close()
        self._stderr.close()
        self._channel.close()
        self._releasing = self._loop.create_task(self._release())

    async def _release(self) -> None:
        os.close(self._process.pidfd)
        if self._main_pidfd is not None:
            os.close(self._main_pidfd)
        await self._process.release()
        self._released.set_result(None)


class ProtocolError(Exception):
    """The kernel died, or said something that it may not say."""


def parse(kind: type[M], answer: bytes | None) -> M:
    if answer is None:
        raise ProtocolError("the kernel died")
    try:
        return kind.model_validate_json(answer)
    except ValidationError as exc:
        raise ProtocolError("not a reply") from exc

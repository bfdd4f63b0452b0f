"""Starts a process through the spawner: a kernel with its pipes and control channel, or a zygote."""

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cellar_executor.kernels.spawner import SpawnRequest
from cellar_executor.kernels.spawning import Spawner

CONFIGURATION = "/proc/self/fd/4"
"""Where the started process finds `Plan.configuration`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    workdir: str
    configuration: bytes
    join_files: list[str]
    """Of the control groups that it is started in."""
    data_bytes: int | None


@dataclass(frozen=True, slots=True)
class Launched:
    """Our ends of a started kernel; the caller closes them."""

    pidfd: int
    control: socket.socket
    stdout: int
    stderr: int
    log: int
    """A file in memory where nsjail says why it failed."""


@dataclass(frozen=True, slots=True)
class LaunchedZygote:
    """Our ends of a started zygote; the caller closes them."""

    pidfd: int
    control: socket.socket
    log: int
    """A file in memory, with what the zygote itself printed too."""


async def launch(spawner: Spawner, plan: Plan) -> Launched:
    """Raises `KernelUnavailable` when the spawner cannot start it."""
    with ExitStack() as ours, ExitStack() as theirs:
        control, kernel_end = control_pair(ours, theirs)
        stdout, stdout_end = pipe(ours, theirs)
        stderr, stderr_end = pipe(ours, theirs)
        log = _memory_file(ours, "log", b"")
        pidfd = await _spawn(spawner, plan, stdout_end, stderr_end, kernel_end, log)
        ours.pop_all()
        return Launched(pidfd, control, stdout, stderr, log)


async def launch_zygote(spawner: Spawner, plan: Plan) -> LaunchedZygote:
    """Raises `KernelUnavailable` when the spawner cannot start it."""
    with ExitStack() as ours, ExitStack() as theirs:
        control, zygote_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.callback(control.close)
        theirs.callback(zygote_end.close)
        log = _memory_file(ours, "log", b"")
        pidfd = await _spawn(spawner, plan, log, log, zygote_end.fileno(), log)
        ours.pop_all()
        return LaunchedZygote(pidfd, control, log)


def control_pair(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, int]:
    """A kernel's control channel, which tells us who writes to it: our end, and its own."""
    control, kernel_end = socket.socketpair()
    ours.callback(control.close)
    theirs.callback(kernel_end.close)
    control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return control, kernel_end.fileno()


def pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    read_end, write_end = os.pipe()
    return closing(ours, read_end), closing(theirs, write_end)


def closing(stack: ExitStack, fd: int) -> int:
    close: Callable[[int], None] = os.close
    stack.callback(close, fd)
    return fd


def read_log(log: int) -> str:
    return os.pread(log, 1 << 16, 0).decode("utf-8", "replace").strip()


async def _spawn(spawner: Spawner, plan: Plan, stdout: int, stderr: int, control: int, log: int) -> int:
    with ExitStack() as configured:
        configuration = _memory_file(configured, "jail", plan.configuration)
        request = SpawnRequest(
            number=spawner.next_number(),
            argv=list(plan.argv),
            environment=plan.environment,
            workdir=plan.workdir,
            join_files=plan.join_files,
            data_bytes=plan.data_bytes,
        )
        fds: Sequence[int] = (stdout, stderr, control, configuration, log)
        return await spawner.spawn(request, fds)


def _memory_file(stack: ExitStack, name: str, content: bytes) -> int:
    fd = closing(stack, os.memfd_create(name))
    os.write(fd, content)
    return fd

"""Starts one kernel process through the spawner: makes the pipes, the control channel and the jail's configuration."""

import os
import socket
from collections.abc import Callable
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
    cgroup_procs: list[str]
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Launched:
    """Our ends of a started process; the caller closes them."""

    pidfd: int
    control: socket.socket
    stdout: int
    stderr: int
    log: int
    """A file in memory where nsjail says why it failed."""


async def launch(spawner: Spawner, plan: Plan) -> Launched:
    """Raises `KernelUnavailable` when the spawner cannot start it."""
    with ExitStack() as ours, ExitStack() as theirs:
        control, kernel_end = socket.socketpair()
        ours.callback(control.close)
        theirs.callback(kernel_end.close)
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        stdout, stdout_end = _pipe(ours, theirs)
        stderr, stderr_end = _pipe(ours, theirs)
        configuration = _closing(theirs, _memory_file("jail", plan.configuration))
        log = _closing(ours, _memory_file("log", b""))
        request = SpawnRequest(
            number=spawner.next_number(),
            argv=list(plan.argv),
            environment=plan.environment,
            workdir=plan.workdir,
            cgroup_procs=plan.cgroup_procs,
            data_bytes=plan.data_bytes,
        )
        fds = [stdout_end, stderr_end, kernel_end.fileno(), configuration, log]
        pidfd = await spawner.spawn(request, fds)
        ours.pop_all()
        return Launched(pidfd, control, stdout, stderr, log)


def read_log(log: int) -> str:
    return os.pread(log, 1 << 16, 0).decode("utf-8", "replace").strip()


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    read_end, write_end = os.pipe()
    return _closing(ours, read_end), _closing(theirs, write_end)


def _memory_file(name: str, content: bytes) -> int:
    fd = os.memfd_create(name)
    os.write(fd, content)
    return fd


def _closing(stack: ExitStack, fd: int) -> int:
    close: Callable[[int], None] = os.close
    stack.callback(close, fd)
    return fd

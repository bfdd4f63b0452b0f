"""What the service needs of a kernel, whatever isolates it: the seam between the HTTP side and the process side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cellar_client.schemas import CellError, Isolation, Limits

OutcomeStatus = Literal["ok", "error", "timeout", "oom", "killed"]


class KernelUnavailable(Exception):
    """No isolated kernel could be started now."""


class IsolationUnavailable(Exception):
    """This host does not allow the isolation that was asked for; the message says what is missing and what mends it."""


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    runtimes: Mapping[str, Path]
    """Name of a runtime -> the Python executable of the environment that its cells see."""
    nsjail: Path | None
    """The nsjail binary; None only without isolation."""
    insecure_no_isolation: bool = False
    interrupt_grace_s: float = 0.5
    """How long a cell may take to end after SIGINT before its kernel is killed."""


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """What became of one cell.

    Status, duration and truncation are observed from outside the kernel; the rest is what the cell says.
    """

    status: OutcomeStatus
    stdout: str
    stderr: str
    result: str | None
    error: CellError | None
    duration_s: float
    truncated: bool


class Kernel(Protocol):
    """The live process that holds one session's namespace. Not for concurrent cells: its session takes turns."""

    @property
    def alive(self) -> bool: ...

    async def run_cell(self, code: str, *, timeout_s: float, stdin: str = "") -> CellOutcome:
        """Run one cell. Never raises for what the cell does.

        After `oom`, `killed` or a hard `timeout` the kernel is not alive.
        """
        ...

    async def put_file(self, path: str, data: bytes) -> None:
        """Write a file into the work directory, from inside the jail.

        Raises `ValueError` when the path leads outside the work directory or the disk is full.
        """
        ...

    def interrupt(self) -> None:
        """KeyboardInterrupt in the running cell; nothing when none runs."""
        ...

    async def close(self) -> None:
        """Kill every process of the session and give back what it held (cgroup, fds, mounts). Idempotent."""
        ...


class Supervisor(Protocol):
    """Makes kernels, knows how they are isolated, and takes them all down."""

    @property
    def isolation(self) -> Isolation: ...

    async def start(self, *, limits: Limits, runtime: str, seed: int | None) -> Kernel:
        """A fresh kernel, ready for its first cell. Raises `KernelUnavailable` when none can be had."""
        ...

    async def self_test(self) -> str | None:
        """Start a jail and try to break out of it; None when all held, else what did not."""
        ...

    async def close(self) -> None: ...

"""What the service needs of a kernel, whatever isolates it: the seam between the HTTP side and the process side."""

from dataclasses import dataclass
from typing import Literal, Protocol

from cellar_client.schemas import CellError, Isolation, Limits

OutcomeStatus = Literal["ok", "error", "timeout", "oom", "killed"]


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """What became of one cell. Status, duration and truncation are observed from outside the kernel; the rest is what the cell says."""

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
        """Run one cell. Never raises for what the cell does; after `oom`, `killed` or a hard `timeout` the kernel is not alive."""
        ...

    async def put_file(self, path: str, data: bytes) -> None:
        """Write a file into the work directory, from inside the jail. Raises `ValueError` on a path that leads outside it or a full disk."""
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

"""What the service needs of a kernel, whatever isolates it: the seam between the HTTP side and the process side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cellar_client.schemas import CellError, FileInfo, Isolation, Limits, Tier

OutcomeStatus = Literal["ok", "error", "timeout", "oom", "killed"]
OutputName = Literal["stdout", "stderr"]
OnOutput = Callable[[OutputName, str], None]
FileProblem = Literal["not_found", "invalid_path", "too_large"]
DEFAULT_PREIMPORTS = ("numpy", "numpy.random", "numpy.linalg", "numpy.fft", "sympy")


class KernelUnavailable(Exception):
    """No isolated kernel could be started now."""


class IsolationUnavailable(Exception):
    """This host does not allow the isolation that was asked for; the message says what is missing and what mends it."""


class KernelFileError(Exception):
    """A file of a session cannot be had: `kind` says why, the message says it to people."""

    def __init__(self, kind: FileProblem, message: str) -> None:
        super().__init__(message)
        self.kind: FileProblem = kind


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """A Python environment whose packages cells see."""

    python: Path
    """Its executable."""
    preimports: tuple[str, ...] = DEFAULT_PREIMPORTS
    """Modules that a warm session has loaded already; those that the environment lacks are left out."""


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    runtimes: Mapping[str, RuntimeConfig]
    nsjail: Path | None
    """The nsjail binary; None only without isolation."""
    tier: Tier = "warm"
    """Of sessions that do not ask for another one."""
    zygotes: int = 2
    """Of each runtime; the processes that warm sessions are cloned from. Each forks one session at a time."""
    ready_sessions: int = 16
    """Of each runtime: warm sessions that wait to be taken, with these limits:"""
    ready_limits: Limits | None = None
    recycle_after_sessions: int = 4000
    """A zygote makes so many sessions; then another takes its place (they share its address layout)."""
    recycle_after_s: float = 3600.0
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
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Stock:
    """Of one runtime: warm sessions that wait to be taken, zygotes that make more, and sessions made so far."""

    ready: int
    zygotes: int
    made: int


class Kernel(Protocol):
    """The live process that holds one session's namespace. Not for concurrent cells: its session takes turns."""

    @property
    def alive(self) -> bool: ...

    async def run_cell(
        self, code: str, *, timeout_s: float, stdin: str = "", on_output: OnOutput | None = None
    ) -> CellOutcome:
        """Run one cell. Never raises for what the cell does.

        `on_output` hears what the cell writes as it writes it, at most `output_bytes` of each stream: the text of the
        outcome, where that is not truncated. It is called on the loop and must not raise.
        After `oom`, `killed` or a hard `timeout` the kernel is not alive.
        """
        ...

    async def put_file(self, path: str, data: bytes) -> None:
        """Write a file into the work directory, from inside the jail.

        Raises `KernelFileError`, and as all that follow here `KernelUnavailable` when the kernel dies over it. Files
        are not for the time while a cell runs: like cells, they take the session's turn.
        """
        ...

    async def get_file(self, path: str, *, max_bytes: int) -> bytes:
        """A regular file of the work directory, read through no symlink. Raises `KernelFileError`."""
        ...

    async def list_files(self, *, max_files: int) -> tuple[list[FileInfo], bool]:
        """The regular files of the work directory by path, and whether there are more. Raises `KernelFileError`."""
        ...

    async def delete_file(self, path: str) -> None:
        """Raises `KernelFileError`."""
        ...

    async def fork(self) -> "Kernel":
        """A live copy in the same jail: it shares files, limits and process numbers with this kernel, and memory as it
        was. The jail lives until the last of them is closed; its death is the death of all.

        Raises `KernelUnavailable`.
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

    async def start(self, *, limits: Limits, runtime: str, seed: int | None, tier: Tier | None = None) -> Kernel:
        """A fresh kernel, ready for its first cell; `tier` None is the configured one.

        Raises `KernelUnavailable` when none can be had.
        """
        ...

    def fence(self, until: float) -> None:
        """Every kernel is killed at this time (seconds of CLOCK_BOOTTIME) unless the call comes again before with a
        later one. It holds when this process is stopped or stuck. A time that has passed kills at once, even if a
        later one follows at once; in between `start` raises. Never called: no fence.

        For any thread; never blocks, and never raises because kernels died.
        """
        ...

    def stock(self) -> Mapping[str, Stock]:
        """By runtime; empty where nothing is kept ready."""
        ...

    async def self_test(self) -> str | None:
        """Start a jail and try to break out of it; None when all held, else what did not."""
        ...

    async def close(self) -> None: ...

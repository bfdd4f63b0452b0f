"""The host as a test sees it: what is there of a session, and whether anything is left of one that has ended."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from cellar_executor.kernels.hierarchy import TREE_PREFIX
from cellar_executor.kernels.jailed_kernel import JailedKernel

T = TypeVar("T")
SOCKET_TABLES = [Path(f"/proc/net/{kind}{version}") for kind in ("tcp", "udp") for version in ("", "6")]


@dataclass(frozen=True, slots=True)
class Traces:
    """Where on the host a live session can be seen."""

    pid_namespace: str
    uid: int
    cgroups: tuple[Path, ...]

    @classmethod
    @contextmanager
    def of(cls, kernel: JailedKernel) -> Iterator[Self]:
        process = Path(f"/proc/{kernel.pid}")
        held = os.open(process / "ns/pid", os.O_RDONLY)  # so that no later namespace gets its number
        try:
            yield cls(pid_namespace(kernel.pid), process.stat().st_uid, tuple(cgroups_of(process)))
        finally:
            os.close(held)

    def left(self) -> list[str]:
        """What is still there; after the session's end it must be nothing."""
        processes = [f"process {pid} {state_of(pid)}" for pid in processes_in(self.pid_namespace)]
        groups = [f"cgroup {folder}" for folder in self.cgroups if folder.exists()]
        return processes + groups + (self._sockets() if self.uid != os.geteuid() else [])

    def _sockets(self) -> list[str]:
        """In the host's network, of the session's uid."""
        lines = [line.split() for table in SOCKET_TABLES if table.exists() for line in table.read_text().splitlines()]
        return [f"socket {fields[1]}" for fields in lines if fields[7] == str(self.uid)]


def pid_namespace(pid: int | None) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def processes_in(namespace: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                found.append(int(entry))
        except OSError:
            continue
    return found


def state_of(pid: int) -> str:
    """As in proc_pid_stat(5), and who its parent is."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    return f"{state}, child of {parent}"


def started_at(pid: int) -> int:
    """In ticks of the clock since the machine started: field 22 of proc_pid_stat(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def cgroups_of(process: Path) -> list[Path]:
    """Folders of the groups that are the session's own: those of a server's sessions have a telling name above them."""
    lines = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
    folders = [Path("/sys/fs/cgroup", names, path.lstrip("/")) for _, names, path in lines if TREE_PREFIX in path]
    assert all(folder.is_dir() for folder in folders), folders
    return folders


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def at_rest(measure: Callable[[], T], for_s: float = 0.3) -> T:
    """Its value, once it has not changed for so long: sessions are made ready in the background."""
    value, since = measure(), time.monotonic()
    while time.monotonic() - since < for_s:
        await asyncio.sleep(0.02)
        if (now := measure()) != value:
            value, since = now, time.monotonic()
    return value


async def becomes(measure: Callable[[], object], expected: object, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while (value := measure()) != expected:
        assert time.monotonic() < deadline, f"still {value}, not {expected}"
        await asyncio.sleep(0.02)

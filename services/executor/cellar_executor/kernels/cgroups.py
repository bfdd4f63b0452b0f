"""One control group for each session: what it may use of the host, read and enforced from outside.

Version 2 where the server has it delegated, else version 1 where the server may write (root), else none: then the
watchdog is what is left. A server locks its folder while it lives, so that a later one can tell what a killed one left.
"""

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cellar_client.schemas import Limits
from cellar_executor.kernels.hierarchy import (
    TREE_PREFIX,
    delegate,
    enable_controllers,
    make_folder,
    v1_folders,
    v2_folder,
)
from cellar_executor.kernels.usage import Usage

log = logging.getLogger(__name__)

PERIOD_US = 100_000
"""A session gets this much CPU time in every period of the same length: one core's worth."""
REMOVE_PAUSES_S = (0.001, 0.002, 0.005, 0.01, 0.02, *[0.05] * 60)
ZYGOTES = "zygotes"
"""The group of the processes that sessions are made from: without limits, but their memory is not the server's."""
SMALL_FILE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Version:
    """File names and values in which the two versions differ."""

    name: Literal["v1", "v2"]
    join: str
    """What a process with one thread writes 0 to, to join. In version 1 the file for threads: one that moves itself
    does not have to wait, some 10 ms, until none of the host's processes forks."""
    oom_events: str
    peak_memory: str
    cpu_controller: str
    cpu_time: str

    def settings(self, limits: Limits, processes: int) -> Mapping[str, Mapping[str, str]]:
        """Controller -> file -> value."""
        memory, pids = str(limits.memory_mb << 20), {"pids.max": str(processes)}
        if self.name == "v2":
            return {"memory": {"memory.max": memory}, "pids": pids, "cpu": {"cpu.max": f"{PERIOD_US} {PERIOD_US}"}}
        cpu = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(PERIOD_US)}
        return {"memory": {"memory.limit_in_bytes": memory}, "pids": pids, "cpu": cpu}

    def without_swap(self, limits: Limits) -> tuple[str, str]:
        """A file of the memory controller that is there only on hosts that count swap, and its value."""
        if self.name == "v2":
            return "memory.swap.max", "0"
        return "memory.memsw.limit_in_bytes", str(limits.memory_mb << 20)

    def cpu_seconds(self, content: bytes) -> float:
        return int(content) / 1e9 if self.name == "v1" else parse_field(content, b"usage_usec") / 1e6


V1 = Version("v1", "tasks", "memory.oom_control", "memory.max_usage_in_bytes", "cpuacct", "cpuacct.usage")
V2 = Version("v2", "cgroup.procs", "memory.events", "memory.peak", "cpu", "cpu.stat")


class SessionCgroup:
    """The control group of one session (in version 1: one for each controller)."""

    def __init__(self, folders: Mapping[str, Path], version: Version, writer: ThreadPoolExecutor) -> None:
        self._folders = folders
        self._version = version
        self._writer = writer
        with contextlib.ExitStack() as opened:
            self._oom_events = open_meter(folders["memory"], version.oom_events, opened)
            self._peak = open_meter(folders["memory"], version.peak_memory, opened)
            self._cpu = open_meter(folders.get(version.cpu_controller), version.cpu_time, opened)
            self._meters = opened.pop_all()

    @property
    def join_files(self) -> list[str]:
        return join_files(self._folders, self._version)

    def open_joins(self, opened: contextlib.ExitStack) -> list[int]:
        """`join_files`, for a process that cannot open them."""
        return [opened_for(file, os.O_WRONLY, opened) for file in self.join_files]

    def usage(self) -> Usage:
        """What its processes have used together. Not to be called once it is removed."""
        return Usage(
            oom_kills=parse_field(read(self._oom_events), b"oom_kill") if self._oom_events is not None else 0,
            cpu_s=self._version.cpu_seconds(read(self._cpu)) if self._cpu is not None else None,
            peak_memory_bytes=int(read(self._peak)) if self._peak is not None else None,
        )

    async def remove(self) -> None:
        """After the session's processes are dead; the kernel may need a moment to see that."""
        self._meters.close()
        await remove_folders(self._folders, self._writer)


@dataclass(frozen=True, slots=True)
class CgroupTree:
    """The folder of this server, for each controller, in which its sessions' groups lie."""

    version: Version
    parents: Mapping[str, Path]
    locks: tuple[int, ...]
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "cgroups"))
    """One thread: the kernel has one lock for all groups."""

    async def create(self, limits: Limits, *, processes: int) -> SessionCgroup:
        """A group that holds at most so many processes. Raises `OSError`, and leaves nothing then."""
        creating = asyncio.get_running_loop().run_in_executor(self.writer, self._create, limits, processes)
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await (await creating).remove()
            raise

    @property
    def zygotes_join_files(self) -> list[str]:
        return join_files(self._folders(ZYGOTES), self.version)

    async def remove(self) -> None:
        await remove_folders(self._folders(ZYGOTES), self.writer)
        await remove_folders(self.parents, self.writer)
        self.writer.shutdown(wait=False)
        for fd in self.locks:
            os.close(fd)

    def _folders(self, name: str) -> dict[str, Path]:
        return {controller: parent / name for controller, parent in self.parents.items()}

    def _create(self, limits: Limits, processes: int) -> SessionCgroup:
        folders = self._folders(secrets.token_hex(6))
        with contextlib.ExitStack() as made:
            make_all(folders, made)
            for controller, files in self.version.settings(limits, processes).items():
                for file, value in files.items():
                    write(folders[controller] / file, value)
            file, value = self.version.without_swap(limits)
            with contextlib.suppress(FileNotFoundError):
                write(folders["memory"] / file, value)
            cgroup = SessionCgroup(folders, self.version, self.writer)
            made.pop_all()
        return cgroup


def open_cgroups() -> CgroupTree | None:
    """This server's own part of the hierarchy, after clearing up after dead servers; None where it may not have one."""
    mounts, own = Path("/proc/self/mounts").read_text(), Path("/proc/self/cgroup").read_text()
    candidates = [(V2, v2_folder(mounts, own)), (V1, v1_folders(mounts, own))]
    for version, folders in candidates:
        if folders is None:
            continue
        try:
            return make_tree(version, folders)
        except OSError as exc:
            log.info("cgroup %s cannot be used: %s", version.name, exc)
    return None


def make_tree(version: Version, folders: Mapping[str, Path]) -> CgroupTree:
    """Raises `OSError`, and leaves nothing then."""
    if version is V2:
        delegate(folders["memory"])
    name = f"{TREE_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    parents = {controller: folder / name for controller, folder in folders.items()}
    with contextlib.ExitStack() as made:
        locks = []
        for parent in sorted(set(parents.values())):
            locks.append(make_folder(parent))
            made.callback(os.close, locks[-1])
            made.callback(parent.rmdir)
        if version is V2:
            enable_controllers(parents["memory"])
        tree = CgroupTree(version, parents, tuple(locks))
        make_all(tree._folders(ZYGOTES), made)
        made.pop_all()
    return tree


def make_all(folders: Mapping[str, Path], made: contextlib.ExitStack) -> None:
    for folder in set(folders.values()):
        os.mkdir(folder)
        made.callback(os.rmdir, folder)


def join_files(folders: Mapping[str, Path], version: Version) -> list[str]:
    return sorted({str(folder / version.join) for folder in folders.values()})


async def remove_folders(folders: Mapping[str, Path], writer: ThreadPoolExecutor) -> None:
    left = set(folders.values())
    for pause_s in REMOVE_PAUSES_S:
        left = await asyncio.get_running_loop().run_in_executor(writer, remove_empty, left)
        if not left:
            return
        await asyncio.sleep(pause_s)
    log.error("cgroups could not be removed: %s", ", ".join(map(str, left)))


def remove_empty(folders: Iterable[Path]) -> set[Path]:
    """Those that are still there."""
    left = set()
    for folder in folders:
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError:
            left.add(folder)
    return left


# --- small files --------------------------------------------------------------------------------


def open_meter(folder: Path | None, name: str, opened: contextlib.ExitStack) -> int | None:
    """A file to read again and again; None where this host does not have it."""
    if folder is None:
        return None
    try:
        return opened_for(folder / name, os.O_RDONLY, opened)
    except FileNotFoundError:
        return None


def opened_for(path: Path | str, how: int, opened: contextlib.ExitStack) -> int:
    fd = os.open(path, how)
    opened.callback(os.close, fd)
    return fd


def read(fd: int) -> bytes:
    return os.pread(fd, SMALL_FILE_BYTES, 0)


def write(path: Path, value: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def parse_field(lines: bytes, wanted: bytes) -> int:
    """The number in a line `wanted NUMBER`; 0 when there is none."""
    for line in lines.splitlines():
        name, _, number = line.partition(b" ")
        if name == wanted:
            return int(number)
    return 0

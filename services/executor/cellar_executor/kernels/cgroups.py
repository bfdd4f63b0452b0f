"""One control group for each session: what it may use of the host, read and enforced from outside.

Version 2 where the server has it delegated, else version 1 where the server may write (root), else none: then the
watchdog is what is left. A server locks its folder while it lives, so that a later one can tell what a killed one left.
"""

import asyncio
import fcntl
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellar_client.schemas import Limits

log = logging.getLogger(__name__)

CONTROLLERS = ("memory", "pids", "cpu")
PERIOD_US = 100_000
"""A session gets this much CPU time in every period of the same length: one core's worth."""
JAIL_OVERHEAD_PROCESSES = 2
"""nsjail itself, and the process that becomes it; RLIMIT_NPROC holds the cells to the exact number."""
REMOVE_ATTEMPTS = 60
REMOVE_PAUSE_S = 0.05
TREE_PREFIX = "cellar-sessions-"


@dataclass(frozen=True, slots=True)
class Version:
    """File names and values in which the two versions differ."""

    name: Literal["v1", "v2"]
    oom_events: str

    def settings(self, limits: Limits) -> Mapping[str, Mapping[str, str]]:
        """Controller -> file -> value."""
        memory = str(limits.memory_mb << 20)
        pids = {"pids.max": str(limits.processes + JAIL_OVERHEAD_PROCESSES)}
        if self.name == "v2":
            return {"memory": {"memory.max": memory}, "pids": pids, "cpu": {"cpu.max": f"{PERIOD_US} {PERIOD_US}"}}
        cpu = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(PERIOD_US)}
        return {"memory": {"memory.limit_in_bytes": memory}, "pids": pids, "cpu": cpu}

    def without_swap(self, limits: Limits) -> Mapping[str, str]:
        """Files that are there only on hosts that count swap."""
        if self.name == "v2":
            return {"memory.swap.max": "0"}
        return {"memory.memsw.limit_in_bytes": str(limits.memory_mb << 20)}


V1 = Version("v1", "memory.oom_control")
V2 = Version("v2", "memory.events")


class SessionCgroup:
    """The control group of one session (in version 1: one for each controller)."""

    def __init__(self, folders: Mapping[str, Path], version: Version) -> None:
        self._folders = folders
        self._events = os.open(folders["memory"] / version.oom_events, os.O_RDONLY)

    @property
    def procs_files(self) -> list[str]:
        """What a process writes 0 to, to join."""
        return sorted({str(folder / "cgroup.procs") for folder in self._folders.values()})

    def oom_kills(self) -> int:
        return parse_oom_kills(os.pread(self._events, 4096, 0))

    async def remove(self) -> None:
        """After the session's processes are dead; the kernel may need a moment to see that."""
        os.close(self._events)
        for folder in set(self._folders.values()):
            await remove_folder(folder)


@dataclass(frozen=True, slots=True)
class CgroupTree:
    """The folder of this server, for each controller, in which its sessions' groups lie."""

    version: Version
    parents: Mapping[str, Path]
    locks: tuple[int, ...]

    def create(self, limits: Limits) -> SessionCgroup:
        name = secrets.token_hex(6)
        folders = {controller: parent / name for controller, parent in self.parents.items()}
        for folder in set(folders.values()):
            folder.mkdir()
        for controller, files in self.version.settings(limits).items():
            for file, value in files.items():
                (folders[controller] / file).write_text(value)
        for file, value in self.version.without_swap(limits).items():
            if (folders["memory"] / file).exists():
                (folders["memory"] / file).write_text(value)
        return SessionCgroup(folders, self.version)

    async def remove(self) -> None:
        for parent in set(self.parents.values()):
            await remove_folder(parent)
        for fd in self.locks:
            os.close(fd)


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
    if version is V2:
        delegate(folders["memory"])
    name = f"{TREE_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    parents = {controller: folder / name for controller, folder in folders.items()}
    locks = tuple(make_folder(parent) for parent in sorted(set(parents.values())))
    if version is V2:
        enable_controllers(parents["memory"])
    return CgroupTree(version, parents, locks)


def make_folder(tree: Path) -> int:
    """Make a server's folder; the lock on it. A sweep cannot come between the two."""
    above = lock(tree.parent)
    try:
        tree.mkdir()
        held = lock(tree)
        sweep(tree.parent)
        return held
    finally:
        os.close(above)


# --- where the hierarchies are ------------------------------------------------------------------


def v1_folders(mounts: str, own: str) -> Mapping[str, Path] | None:
    """Controller -> this process's own folder, from /proc/self/mounts and /proc/self/cgroup."""
    ours = {name: path for _, names, path in _own_groups(own) for name in names.split(",")}
    folders: dict[str, Path] = {}
    for _, where, kind, options, *_ in map(str.split, mounts.splitlines()):
        if kind != "cgroup":
            continue
        for controller in set(CONTROLLERS) & set(options.split(",")) & set(ours):
            folders[controller] = _visible(Path(where), ours[controller])
    return folders if len(folders) == len(CONTROLLERS) else None


def v2_folder(mounts: str, own: str) -> Mapping[str, Path] | None:
    ours = next((path for number, _, path in _own_groups(own) if number == "0"), None)
    for _, where, kind, *_ in map(str.split, mounts.splitlines()):
        if kind == "cgroup2" and ours is not None:
            folder = _visible(Path(where), ours)
            available = (folder / "cgroup.controllers").read_text().split()
            return dict.fromkeys(CONTROLLERS, folder) if set(CONTROLLERS) <= set(available) else None
    return None


def _own_groups(own: str) -> Iterator[list[str]]:
    return (line.split(":", 2) for line in own.splitlines())


def _visible(mount: Path, path: str) -> Path:
    """In a container the path may be the host's while the mount shows only the container's own part."""
    folder = mount / path.lstrip("/")
    return folder if folder.exists() else mount


def delegate(own: Path) -> None:
    """Version 2 has processes in leaves only: those of our group move to one, before its children get controllers."""
    if set(CONTROLLERS) <= set((own / "cgroup.subtree_control").read_text().split()):
        return
    leaf = own / "cellar-server"
    leaf.mkdir(exist_ok=True)
    for pid in (own / "cgroup.procs").read_text().split():
        (leaf / "cgroup.procs").write_text(pid)
    enable_controllers(own)


def enable_controllers(folder: Path) -> None:
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in CONTROLLERS))


# --- clearing up --------------------------------------------------------------------------------


def lock(folder: Path, how: int = fcntl.LOCK_EX) -> int:
    """An fd that holds a lock on the folder until it is closed. Raises `BlockingIOError` with LOCK_NB."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        os.close(fd)
        raise
    return fd


def sweep(folder: Path) -> None:
    """Remove what servers that are dead by now left here: those whose lock is free."""
    for tree in folder.glob(f"{TREE_PREFIX}*"):
        try:
            fd = lock(tree, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        try:
            for group in (*tree.glob("*/"), tree):
                group.rmdir()
        except OSError as exc:
            log.warning("a dead server's cgroup %s stays: %s", tree, exc.strerror)
        finally:
            os.close(fd)


async def remove_folder(folder: Path) -> None:
    for _ in range(REMOVE_ATTEMPTS):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return
        except OSError:
            await asyncio.sleep(REMOVE_PAUSE_S)
        else:
            return
    log.error("cgroup %s could not be removed", folder)


def parse_oom_kills(events: bytes) -> int:
    for line in events.splitlines():
        name, _, count = line.partition(b" ")
        if name == b"oom_kill":
            return int(count)
    return 0

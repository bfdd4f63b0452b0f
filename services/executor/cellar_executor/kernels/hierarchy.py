"""Where a host has its control groups, and which part of them is this server's."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

CONTROLLERS = ("memory", "pids", "cpu")
COUNTERS = ("cpuacct",)
"""Of version 1: a controller that only counts, used where it is there. Version 2 counts with the others."""
TREE_PREFIX = "cellar-sessions-"
LEAF = "cellar-server"
"""Of version 2, which has processes in leaves only: where the server and what else was in its group are moved to."""
MOVES = 10
"""What forks while it is moved leaves a child behind: so often is looked again."""


def v1_folders(mounts: str, own: str) -> Mapping[str, Path] | None:
    """Controller -> this process's own folder, from /proc/self/mounts and /proc/self/cgroup."""
    ours = {name: path for _, names, path in _own_groups(own) for name in names.split(",")}
    folders: dict[str, Path] = {}
    for _, where, kind, options, *_ in map(str.split, mounts.splitlines()):
        if kind != "cgroup":
            continue
        for controller in {*CONTROLLERS, *COUNTERS} & set(options.split(",")) & set(ours):
            folders[controller] = _visible(Path(where), ours[controller])
    return folders if set(CONTROLLERS) <= set(folders) else None


def v2_folder(mounts: str, own: str) -> Mapping[str, Path] | None:
    ours = next((path for number, _, path in _own_groups(own) if number == "0"), None)
    for _, where, kind, *_ in map(str.split, mounts.splitlines()):
        if kind == "cgroup2" and ours is not None:
            folder = _visible(Path(where), ours)
            if folder.name == LEAF:  # moved there by this server, or by an earlier one of the same shell
                folder = folder.parent
            available = (folder / "cgroup.controllers").read_text().split()
            return dict.fromkeys(CONTROLLERS, folder) if set(CONTROLLERS) <= set(available) else None
    return None


def memory_groups(mounts: str, own: str) -> Iterator[Path]:
    """The folders of this process's memory group and of all that enclose it, in whichever version."""
    ours = {name: path for _, names, path in _own_groups(own) for name in names.split(",")}
    for _, where, kind, options, *_ in map(str.split, mounts.splitlines()):
        has_memory = kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(","))
        name = "" if kind == "cgroup2" else "memory"
        if has_memory and name in ours:
            folder = _visible(Path(where), ours[name])
            yield from (group for group in (folder, *folder.parents) if group.is_relative_to(where))


def _own_groups(own: str) -> Iterator[list[str]]:
    return (line.split(":", 2) for line in own.splitlines())


def _visible(mount: Path, path: str) -> Path:
    """In a container the path may be the host's while the mount shows only the container's own part."""
    folder = mount / path.lstrip("/")
    return folder if folder.exists() else mount


def delegate(own: Path) -> None:
    """Give the children of our group controllers. Its processes move to a leaf where the kernel asks for that."""
    if set(CONTROLLERS) <= set((own / "cgroup.subtree_control").read_text().split()):
        return
    try:
        enable_controllers(own)  # in the root of all groups, which may have processes too
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        move_processes(own, own / LEAF)
        enable_controllers(own)


def move_processes(group: Path, leaf: Path) -> None:
    leaf.mkdir(exist_ok=True)
    for _ in range(MOVES):
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):  # ended since
                (leaf / "cgroup.procs").write_text(pid)


def enable_controllers(folder: Path) -> None:
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in CONTROLLERS))


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

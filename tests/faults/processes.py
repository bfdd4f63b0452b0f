"""The processes below one process, by what tells a process from a later one with its number."""

import ctypes
import os
import time
from pathlib import Path
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.05


class Process(NamedTuple):
    pid: int
    started: int
    """In clock ticks since boot."""


def adopt_orphans() -> None:
    """What a server of ours leaves behind becomes a child of this process, so that it cannot hide."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def below(root: int) -> set[Process]:
    """All live processes that descend from `root`, which is not one of them. Zombies are dead."""
    parents: dict[Process, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (found := _read(int(folder.name))) is not None:
            process, parent, state = found
            if state not in "ZX":
                parents[process] = parent
    tree, generation = set[Process](), {root}
    while generation:
        children = {process for process, parent in parents.items() if parent in generation}
        tree |= children
        generation = {child.pid for child in children}
    return tree


def survivors(processes: set[Process], within_s: float) -> set[Process]:
    """Those that still live after so long."""
    deadline = time.monotonic() + within_s
    while (left := {process for process in processes if _lives(process)}) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def bury(processes: set[Process]) -> None:
    """Reap those that became children of ours and died."""
    for process in processes:
        found = _read(process.pid)
        if found is not None and found[:2] == (process, os.getpid()) and found[2] == "Z":
            os.waitpid(process.pid, os.WNOHANG)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _lives(process: Process) -> bool:
    found = _read(process.pid)
    return found is not None and found[0] == process and found[2] not in "ZX"


def _read(pid: int) -> tuple[Process, int, str] | None:
    """The process, its parent and its state."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent, *rest = stat.rpartition(")")[2].split()
    return Process(pid, int(rest[17])), int(parent), state

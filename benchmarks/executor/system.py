"""What the host says about its processes. Where it does not let us look, the error says so."""

import datetime
import os
import platform
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


def descendants(root: int) -> list[int]:
    """`root` and everything below it that lives."""
    found, unseen = [], [root]
    while unseen:
        pid = unseen.pop()
        found.append(pid)
        for children in PROC.glob(f"{pid}/task/*/children"):
            try:
                unseen += map(int, children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def pss_bytes(pids: Iterable[int]) -> int:
    """Proportional set size: pages that n processes share count for one n-th each. What ended meanwhile counts not."""
    return 1024 * sum(_field(PROC / str(pid) / "smaps_rollup", "Pss:") for pid in pids)


def memory_available_bytes() -> int:
    return 1024 * _field(PROC / "meminfo", "MemAvailable:")


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of one process so far."""
    return sum(int(s.read_text().split()[0]) for s in PROC.glob(f"{pid}/task/*/schedstat")) / 1e9


def command(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def disk_flushes(path: Path) -> int | None:
    """Flushes so far of the disk that `path` is on, whoever asked for them; None where it is on no disk of its own."""
    device = path.stat().st_dev
    for line in _lines(PROC / "diskstats"):
        fields = line.split()
        if (int(fields[0]), int(fields[1])) == (os.major(device), os.minor(device)) and len(fields) > 18:
            return int(fields[18])
    return None


def machine(isolation: str) -> str:
    """One line about where and when the figures were made."""
    cpu = next((v for line in _lines(PROC / "cpuinfo") if (v := _value(line, "model name"))), platform.machine())
    memory_gb = 1024 * _field(PROC / "meminfo", "MemTotal:") / 2**30
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{datetime.date.today()}, {os.cpu_count()} cores ({cpu}), {memory_gb:.0f} GB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load before {load}; server: {isolation}\n"
    )


def _field(path: Path, name: str) -> int:
    try:
        return next(int(line.split()[1]) for line in _lines(path) if line.startswith(name))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _value(line: str, name: str) -> str:
    key, _, value = line.partition(":")
    return value.strip() if key.strip() == name else ""

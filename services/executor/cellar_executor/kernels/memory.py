"""How much memory this server and its sessions may still take, by the host and by each control group around them."""

from pathlib import Path

from cellar_executor.kernels.cgroups import parse_field
from cellar_executor.kernels.hierarchy import memory_groups
from cellar_executor.kernels.watchdog import sum_of_fields

PROC = Path("/proc")
FILES = (
    ("memory.max", "memory.current", b"inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file"),
)
"""Limit, usage, and the field of memory.stat for what is dropped first when memory is short; of version 2, of 1."""
NO_LIMIT = "max"


def free_memory_bytes(proc: Path = PROC) -> int:
    """The least of what is available on the host and what is left in each group. Raises `OSError`."""
    groups = memory_groups((proc / "self/mounts").read_text(), (proc / "self/cgroup").read_text())
    available = sum_of_fields((proc / "meminfo").read_text(), ("MemAvailable",)) * 1024
    return min([available, *(left for folder in groups if (left := left_in(folder)) is not None)])


def left_in(folder: Path) -> int | None:
    """Of one control group; None where it has no limit."""
    for limit, usage, droppable in FILES:
        if (folder / limit).exists():
            allowed = (folder / limit).read_text().strip()
            if allowed == NO_LIMIT:
                return None
            dropped = parse_field((folder / "memory.stat").read_bytes(), droppable)
            return max(0, int(allowed) - int((folder / usage).read_text()) + dropped)
    return None

"""Where there is no control group: sums a session's memory from outside and kills the session that has too much."""

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cellar_executor.kernels.jailed_kernel import JailedKernel

PERIOD_S = 0.1
SHARE = 0.1
"""Of the server's time, at most: a look at a session takes 0.1 ms, and there may be a thousand."""
PROC = Path("/proc")


async def watch(kernels: Callable[[], Iterable[tuple[JailedKernel, int]]]) -> None:
    """Until cancelled: kill each jail whose processes together hold more than its `memory_mb`."""
    while True:
        spent_s = 0.0
        for kernel, memory_mb in list(kernels()):
            started_s = time.thread_time()
            if kernel.alive and kernel.pid is not None and holds_more(kernel.pid, memory_mb * 1024):
                kernel.kill_jail("oom")
            spent_s += time.thread_time() - started_s
            await asyncio.sleep(0)  # the server has requests to answer in between
        await asyncio.sleep(max(PERIOD_S, spent_s / SHARE))


def holds_more(pid: int, limit_kb: int) -> bool:
    """The quick sum counts in full what is shared with a zygote or by forks; above the limit the exact one decides."""
    return total_kb(pid, resident_kb) > limit_kb and total_kb(pid, proportional_kb) > limit_kb


def total_kb(pid: int, of_one: Callable[[int], int]) -> int:
    """Of a process and its descendants; what ends meanwhile counts nothing."""
    try:
        threads = list((PROC / str(pid) / "task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
        own = of_one(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return own + sum(total_kb(child, of_one) for child in children)


def resident_kb(pid: int) -> int:
    """Memory that is not read from files."""
    return sum_of_fields((PROC / str(pid) / "status").read_text(), ("RssAnon", "RssShmem"))


def proportional_kb(pid: int) -> int:
    """The same; of a page that several processes share each counts its part."""
    try:
        return sum_of_fields((PROC / str(pid) / "smaps_rollup").read_text(), ("Pss_Anon", "Pss_Shmem"))
    except PermissionError:
        return resident_kb(pid)


def sum_of_fields(text: str, names: tuple[str, ...]) -> int:
    """Of lines `NAME: NUMBER kB`."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) for name in names if name in fields)

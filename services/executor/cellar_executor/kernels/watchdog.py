"""Where there is no control group: sums a session's memory from outside and kills the session that has too much."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from cellar_executor.kernels.jailed_kernel import JailedKernel

PERIOD_S = 0.1
PROC = Path("/proc")


async def watch(kernels: Callable[[], Iterable[tuple[JailedKernel, int]]]) -> None:
    """Until cancelled: kill each kernel whose processes together hold more than its `memory_mb`."""
    while True:
        for kernel, memory_mb in list(kernels()):
            if kernel.alive and kernel.pid is not None and private_kb(kernel.pid) > memory_mb * 1024:
                kernel.kill("oom")
        await asyncio.sleep(PERIOD_S)


def private_kb(pid: int) -> int:
    """Memory of a process and its descendants, without what is read from files; what ends meanwhile counts nothing."""
    try:
        own = anonymous_kb((PROC / str(pid) / "status").read_text())
        threads = list((PROC / str(pid) / "task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return own + sum(map(private_kb, children))


def anonymous_kb(status: str) -> int:
    """Sum of RssAnon and RssShmem of a /proc/PID/status."""
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem") if name in fields)

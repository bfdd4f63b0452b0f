"""A thousand live sessions at once, apart from each other, and nothing left of them when they are deleted."""

import asyncio
import os
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from cellar_client.schemas import Limits
from cellar_executor.kernel import RuntimeConfig, SupervisorConfig
from cellar_executor.kernels.hierarchy import TREE_PREFIX
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.supervisor import ProcessSupervisor, open_supervisor
from tests.sandbox.conftest import NSJAIL, PYTHON
from tests.sandbox.host import at_rest, becomes, open_fds

T = TypeVar("T")
SESSIONS = 1000
AT_ONCE = 50
LIMITS = Limits(cell_timeout_s=60, memory_mb=64, processes=8, disk_mb=4, output_bytes=4096)
BACK_WITHIN_S = 5.0
LEFT_MB = 48
"""What the server's own heap and the kernel's accounts may keep."""
SESSION_MB = 8
"""Far less than a Python of its own with numpy and sympy would take (about 70)."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the server and all below it hold of the host."""

    processes: int
    mounts: int
    cgroups: int
    fds: int

    @classmethod
    def now(cls) -> Self:
        family = descendants(os.getpid())
        return cls(
            len(family),
            sum(
                len(Path(f"/proc/{pid}/mounts").read_text().splitlines()) for pid in one_of_each_mount_namespace(family)
            ),
            len(list(Path("/sys/fs/cgroup").glob(f"*/**/{TREE_PREFIX}{os.getpid()}-*/**/"))),
            open_fds(),
        )


async def test_a_thousand_sessions_live_apart_and_leave_nothing() -> None:
    config = SupervisorConfig({"python": RuntimeConfig(PYTHON)}, NSJAIL, zygotes=2, ready_sessions=0)
    supervisor = await open_supervisor(config)
    try:
        # The heap of a server that has had no session yet grows once, by about as much as LEFT_MB.
        await in_turn(kernel.close() for kernel in await in_turn(start(supervisor, 0) for _ in range(SESSIONS // 2)))
        before, memory_before = await at_rest(Held.now), memory_mb()
        kernels = await in_turn(start(supervisor, number) for number in range(SESSIONS))
        assert Held.now().processes >= before.processes + SESSIONS
        assert await in_turn(own_number(kernel) for kernel in kernels) == list(range(SESSIONS))
        assert_apart(kernels)
        assert (memory_mb() - memory_before) / SESSIONS < SESSION_MB
        await in_turn(kernel.close() for kernel in kernels)
        await becomes(Held.now, before, BACK_WITHIN_S)
        await becomes(lambda: memory_mb() < memory_before + LEFT_MB, True, BACK_WITHIN_S)
    finally:
        await supervisor.close()


async def start(supervisor: ProcessSupervisor, number: int) -> JailedKernel:
    kernel = await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    code = (
        f"number = {number}\nfor folder in ('.', '/tmp', '/dev/shm'): open(folder + '/number', 'w').write(str(number))"
    )
    assert (await kernel.run_cell(code, timeout_s=60)).status == "ok"
    return kernel


async def own_number(kernel: JailedKernel) -> int:
    code = (
        "import numpy, sympy, os\nfolders = '.', '/tmp', '/dev/shm'\n"
        "assert {open(f + '/number').read() for f in folders} == {str(number)}\nint(numpy.array([number]).sum())"
    )
    outcome = await kernel.run_cell(code, timeout_s=60)
    assert outcome.result is not None, outcome
    return int(outcome.result)


def assert_apart(kernels: list[JailedKernel]) -> None:
    for kind in ("pid", "mnt", "user", "net", "ipc"):
        assert len({os.readlink(f"/proc/{kernel.pid}/ns/{kind}") for kernel in kernels}) == SESSIONS, kind
    if os.geteuid() == 0:
        assert len({os.stat(f"/proc/{kernel.pid}").st_uid for kernel in kernels}) == SESSIONS


async def in_turn(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """So many at once, the results in order."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(coroutine: Coroutine[Any, Any, T]) -> T:
        async with places:
            return await coroutine

    return await asyncio.gather(*map(one, work))


# --- the host -----------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """It and all below it."""
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(entry))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def one_of_each_mount_namespace(pids: Iterable[int]) -> Iterable[int]:
    found: dict[str, int] = {}
    for pid in pids:
        try:
            found.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), pid)
        except OSError:
            continue  # it has just ended
    return found.values()


def memory_mb() -> float:
    """Of the server and all below it, shared pages counted once."""
    total = 0
    for pid in descendants(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024

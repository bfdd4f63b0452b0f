"""What a session may use, and what becomes of it at the limit: in both tiers the same."""

import asyncio

import pytest

from cellar_executor.kernel import CellOutcome
from cellar_executor.kernels.jail import INODES_PER_MB, OPEN_FILES, SHARED_MEMORY_MB
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.supervisor import ProcessSupervisor
from tests.sandbox.conftest import LIMITS

pytestmark = pytest.mark.asyncio(loop_scope="session")

COUNT_CHILDREN = """
import os, time
n = 0
try:
    while n < 1000:
        if not os.fork(): time.sleep(99)
        n += 1
except BlockingIOError: pass
n"""
COUNT_THREADS = """
import threading, time
threading.stack_size(1 << 16)  # else the address space of their stacks is used up first
n = 0
try:
    while n < 1000:
        threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
        n += 1
except RuntimeError: pass
n"""
FILL = """
n = 0
try:
    with open(FOLDER + '/full', 'wb', 0) as f:
        while True: n += f.write(bytes(1 << 16))
except OSError: pass
n / (1 << 20)"""
COUNT_FILES = """
n = 0
try:
    while True:
        open(f'f{n}', 'w').close(); n += 1
except OSError: pass
n"""
COUNT_FDS = """
import os
fds = []
try:
    while True: fds.append(os.dup(0))
except OSError: pass
for fd in fds: os.close(fd)
len(fds)"""
BUSY = """
import os, time
for _ in range(4):
    if not os.fork():
        while True: pass
time.sleep(1.5)"""


@pytest.fixture
def _cgroup(supervisor: ProcessSupervisor) -> None:
    if supervisor.isolation.cgroup == "none":
        pytest.skip("no control group is delegated to this user")


needs_cgroup = pytest.mark.usefixtures("_cgroup")


async def run(kernel: JailedKernel, code: str, timeout_s: float = 30) -> CellOutcome:
    return await kernel.run_cell(code, timeout_s=timeout_s)


async def number(kernel: JailedKernel, code: str) -> float:
    outcome = await run(kernel, code)
    assert outcome.result is not None, outcome
    return float(outcome.result)


async def test_a_session_may_use_most_of_its_memory_and_lives_on_beyond(kernel: JailedKernel) -> None:
    most = LIMITS.memory_mb * 2 // 3
    assert (await run(kernel, f"mine = 1; x = bytearray({most} << 20); len(x) >> 20")).result == str(most)
    for _ in range(3):
        outcome = await run(kernel, f"y = bytearray({LIMITS.memory_mb} << 20)")
        assert outcome.error is not None
        assert outcome.error.type == "MemoryError"
    assert (await run(kernel, "mine, len(x) >> 20")).result == f"(1, {most})"


@needs_cgroup
async def test_what_no_rlimit_counts_ends_the_session_as_oom(kernel: JailedKernel) -> None:
    code = f"import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor i in range(0, {LIMITS.memory_mb} << 20, 4096): m[i] = 1"
    outcome = await run(kernel, code)
    assert (outcome.status, kernel.alive) == ("oom", False)
    assert outcome.peak_memory_bytes is not None
    assert outcome.peak_memory_bytes >= 0.9 * (LIMITS.memory_mb << 20)


@needs_cgroup
async def test_time_and_memory_are_counted_from_outside(kernel: JailedKernel) -> None:
    idle = await run(kernel, "import time; time.sleep(0.3)")
    busy = await run(
        kernel,
        "import time\nx = bytearray(50 << 20)\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass",
    )
    assert idle.cpu_s is not None
    assert busy.cpu_s is not None
    assert idle.cpu_s < 0.2 < 0.45 < busy.cpu_s
    assert idle.duration_s >= 0.3
    assert busy.peak_memory_bytes is not None
    assert busy.peak_memory_bytes > 50 << 20


@pytest.mark.parametrize("code", [COUNT_CHILDREN, COUNT_THREADS], ids=["children", "threads"])
async def test_processes_and_threads_together_are_bounded(kernel: JailedKernel, code: str) -> None:
    assert LIMITS.processes - 3 <= await number(kernel, code) <= LIMITS.processes


@needs_cgroup
async def test_four_busy_processes_get_one_core(kernel: JailedKernel) -> None:
    outcome = await run(kernel, BUSY)
    assert outcome.cpu_s is not None
    assert outcome.cpu_s <= 1.25 * outcome.duration_s


@pytest.mark.parametrize(
    ("folder", "limit_mb"), [(".", LIMITS.disk_mb), ("/tmp", LIMITS.disk_mb), ("/dev/shm", SHARED_MEMORY_MB)]
)
async def test_each_folder_is_bounded(kernel: JailedKernel, folder: str, limit_mb: int) -> None:
    assert limit_mb - 1 <= await number(kernel, FILL.replace("FOLDER", repr(folder))) <= limit_mb
    assert (await run(kernel, "1")).result == "1"


async def test_files_are_bounded_by_number(kernel: JailedKernel) -> None:
    assert await number(kernel, COUNT_FILES) <= LIMITS.disk_mb * INODES_PER_MB


async def test_open_files_are_bounded(kernel: JailedKernel) -> None:
    assert OPEN_FILES - 10 <= await number(kernel, COUNT_FDS) < OPEN_FILES


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_output_beyond_the_limit_keeps_both_ends_and_says_so(kernel: JailedKernel, stream: str) -> None:
    code = f"import sys\nfor n in range(200_000): print(n, file=sys.{stream})"
    outcome = await run(kernel, code)
    text = getattr(outcome, stream)
    assert (outcome.status, outcome.truncated) == ("ok", True)
    assert text.startswith("0\n1\n")
    assert text.endswith("199999\n")
    assert len(text) <= LIMITS.output_bytes + 100
    assert (await run(kernel, "print(1)")).truncated is False


async def test_one_sessions_limits_are_no_other_ones(supervisor: ProcessSupervisor) -> None:
    small = LIMITS.model_copy(update={"memory_mb": 64, "processes": 4, "disk_mb": 2})
    kernels = [await supervisor.start(limits=limits, runtime="python", seed=None) for limits in (small, LIMITS)]
    for kernel, limits in zip(kernels, (small, LIMITS), strict=True):
        assert await number(kernel, FILL.replace("FOLDER", "'.'")) <= limits.disk_mb
        assert limits.processes - 3 <= await number(kernel, COUNT_THREADS) <= limits.processes
    outcomes = [await run(kernel, "x = bytearray(80 << 20)") for kernel in kernels]
    assert [outcome.status for outcome in outcomes] == ["error", "ok"]
    await asyncio.gather(*(kernel.close() for kernel in kernels))

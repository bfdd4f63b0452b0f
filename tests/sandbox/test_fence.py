"""Kernels end at the time that their server was given, whatever has become of the server."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from cellar_client.schemas import Tier
from cellar_executor.kernel import KernelUnavailable, SupervisorConfig
from cellar_executor.kernels.fence import now
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.supervisor import ProcessSupervisor, open_supervisor
from tests.sandbox.conftest import LIMITS, PYTHON
from tests.sandbox.host import at_rest, becomes, pid_namespace, processes_in, state_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

DAEMON = """
import os
if not (child := os.fork()):
    os.setsid()
    if not os.fork():
        while True: pass
    os._exit(0)
os.waitpid(child, 0)
"""
SPIN = "while True: pass"
SLACK_S = 1.0
SERVER = """
import asyncio, os, signal, sys
from pathlib import Path
from cellar_client.schemas import Limits
from cellar_executor.kernel import KernelUnavailable, RuntimeConfig, SupervisorConfig
from cellar_executor.kernels.fence import now
from cellar_executor.kernels.supervisor import open_supervisor

DAEMON, SPIN = sys.argv[4:]
LIMITS = Limits(cell_timeout_s=5, memory_mb=128, processes=16, disk_mb=16, output_bytes=65536)

async def main():
    runtimes = {"python": RuntimeConfig(Path(sys.argv[1]))}
    config = SupervisorConfig(runtimes=runtimes, nsjail=Path(sys.argv[2]), tier=sys.argv[3], zygotes=1)
    supervisor = await open_supervisor(config)
    start = lambda: supervisor.start(limits=LIMITS, runtime="python", seed=None)
    idle, spinning = await start(), await start()
    copy = await spinning.fork()
    await copy.run_cell(DAEMON, timeout_s=5)
    cells = [asyncio.create_task(kernel.run_cell(SPIN, timeout_s=600)) for kernel in (spinning, copy)]
    await asyncio.sleep(0.1)
    until = now() + 2
    supervisor.fence(until)
    print(until, idle.pid, spinning.pid, flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    outcomes = [(await cell).status for cell in cells]
    await asyncio.sleep(0.1)
    print(*outcomes, idle.alive, spinning.alive, copy.alive, flush=True)
    supervisor.fence(now() + 600)
    outcome = await (await start()).run_cell("1 + 1", timeout_s=5)
    print(outcome.result, flush=True)
    await supervisor.close()

asyncio.run(main())
"""


@pytest_asyncio.fixture(loop_scope="session")
async def fenced(config: SupervisorConfig) -> AsyncIterator[ProcessSupervisor]:
    supervisor = await open_supervisor(replace(config, ready_sessions=1))
    yield supervisor
    await supervisor.close()


async def start(supervisor: ProcessSupervisor) -> JailedKernel:
    return await supervisor.start(limits=LIMITS, runtime="python", seed=None)


async def test_a_stopped_servers_kernels_end_at_the_time_and_it_goes_on_with_new_ones(
    config: SupervisorConfig, tier: Tier
) -> None:
    command = [sys.executable, "-c", SERVER, str(PYTHON), str(config.nsjail), tier, DAEMON, SPIN]
    server = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert server.stdout is not None
    until, *pids = (await server.stdout.readline()).split()
    namespaces = [pid_namespace(int(pid)) for pid in pids]
    await becomes(lambda: state_of(server.pid)[0], "T")
    assert [len(living(namespace)) for namespace in namespaces] == [1, 3]
    await asyncio.sleep(float(until) - 0.5 - now())
    assert [len(living(namespace)) for namespace in namespaces] == [1, 3]
    await asyncio.sleep(float(until) + SLACK_S - now())
    assert [living(namespace) for namespace in namespaces] == [[], []]
    server.send_signal(signal.SIGCONT)
    assert (await server.stdout.readline()).split() == [b"killed", b"killed", b"False", b"False", b"False"]
    assert await server.stdout.readline() == b"2\n"
    assert await server.wait() == 0


async def test_a_fenced_server_has_no_kernels_until_it_is_put_off(fenced: ProcessSupervisor) -> None:
    kernel = await start(fenced)
    cell = asyncio.create_task(kernel.run_cell(SPIN, timeout_s=60))
    fenced.fence(0)
    assert (await cell).status == "killed"
    assert not kernel.alive
    with pytest.raises(KernelUnavailable, match="time"):
        await start(fenced)
    fenced.fence(now() + 600)
    assert (await (await start(fenced)).run_cell("1 + 1", timeout_s=5)).result == "2"


async def test_zygotes_and_ready_sessions_come_back_unasked(fenced: ProcessSupervisor, tier: Tier) -> None:
    if tier != "warm":
        pytest.skip("it has none")
    before = await at_rest(lambda: jailed(fenced))
    fenced.fence(0)
    await becomes(lambda: jailed(fenced), 0)
    await asyncio.sleep(0.5)
    assert jailed(fenced) == 0
    fenced.fence(now() + 600)
    await becomes(lambda: jailed(fenced), before, within_s=20)


def living(namespace: str) -> list[int]:
    """Processes that run or may: an orphan that ended stays until the host's first process takes note of it."""
    return [pid for pid in processes_in(namespace) if state_of(pid)[0] not in "Ze"]


def jailed(supervisor: ProcessSupervisor) -> int:
    """How many processes live below its spawner: jails, and what is in them."""
    spawner = supervisor._resources._spawner
    return len(descendants(spawner._process.pid)) if spawner else 0


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []

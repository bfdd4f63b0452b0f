"""What a session leaves behind: nothing, however it or its server ends."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cellar_client.schemas import Limits, Tier
from cellar_executor.kernel import KernelFileError, RuntimeConfig, SupervisorConfig
from cellar_executor.kernels.cgroups import open_cgroups
from cellar_executor.kernels.hierarchy import TREE_PREFIX
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.supervisor import ProcessSupervisor, open_supervisor
from tests.sandbox.conftest import LIMITS, PYTHON
from tests.sandbox.host import Traces, at_rest, becomes, open_fds, pid_namespace, processes_in, started_at

pytestmark = pytest.mark.asyncio(loop_scope="session")

DAEMONS = "import os, time\nfor _ in range(3):\n if not os.fork():\n  os.setsid(); time.sleep(999)\n1"
SERVER = """
import asyncio, sys
from pathlib import Path
from cellar_client.schemas import Limits
from cellar_executor.kernel import RuntimeConfig, SupervisorConfig
from cellar_executor.kernels.supervisor import open_supervisor

async def main():
    runtimes = {"python": RuntimeConfig(Path(sys.argv[1]))}
    config = SupervisorConfig(runtimes=runtimes, nsjail=Path(sys.argv[2]), tier=sys.argv[3], zygotes=1)
    supervisor = await open_supervisor(config)
    limits = Limits(cell_timeout_s=5, memory_mb=128, processes=16, disk_mb=16, output_bytes=65536)
    kernels = [await supervisor.start(limits=limits, runtime="python", seed=None) for _ in range(2)]
    await kernels[0].run_cell("import os\\nif not os.fork():\\n while True: pass", timeout_s=5)
    print(*[kernel.pid for kernel in kernels], flush=True)
    await kernels[0].run_cell("while True: pass", timeout_s=600)

asyncio.run(main())
"""


async def test_closing_a_session_ends_every_process_of_it(kernel: JailedKernel, traces: Traces) -> None:
    assert (await kernel.run_cell(DAEMONS, timeout_s=5)).result == "1"
    assert len(processes_in(traces.pid_namespace)) == 4
    await kernel.close()
    await becomes(traces.left, [])


async def test_closing_gives_back_file_descriptors_and_the_cgroup(supervisor: ProcessSupervisor) -> None:
    before = await at_rest(held_by_the_server)
    kernels = await asyncio.gather(*(supervisor.start(limits=LIMITS, runtime="python", seed=None) for _ in range(4)))
    await asyncio.gather(*(kernel.run_cell("1", timeout_s=5) for kernel in kernels))
    await asyncio.gather(*(kernel.close() for kernel in kernels))
    await becomes(held_by_the_server, before)


async def test_a_killed_kernel_gives_back_what_it_held_without_being_closed(supervisor: ProcessSupervisor) -> None:
    before = await at_rest(held_by_the_server)
    kernel = await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    assert (await kernel.run_cell("import os; os._exit(0)", timeout_s=5)).status == "killed"
    await becomes(held_by_the_server, before)


async def test_close_can_be_called_twice_and_at_the_same_time(kernel: JailedKernel) -> None:
    await asyncio.gather(kernel.close(), kernel.close())
    await kernel.close()
    assert (await kernel.run_cell("1", timeout_s=5)).status == "killed"


async def test_a_cancelled_cell_ends_its_session(kernel: JailedKernel) -> None:
    cell = asyncio.create_task(kernel.run_cell("while True: pass", timeout_s=60))
    await asyncio.sleep(0.05)
    cell.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cell
    assert not kernel.alive


async def test_a_killed_server_takes_its_sessions_along_and_the_next_one_clears_up(
    config: SupervisorConfig, tier: Tier
) -> None:
    command = [sys.executable, "-c", SERVER, str(PYTHON), str(config.nsjail), tier]
    server = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert server.stdout is not None
    namespaces = [pid_namespace(int(pid)) for pid in (await server.stdout.readline()).split()]
    assert len(namespaces) == 2
    assert all(processes_in(namespace) for namespace in namespaces)
    server.kill()
    await server.wait()
    await becomes(lambda: [pid for namespace in namespaces for pid in processes_in(namespace)], [])
    await asyncio.sleep(0.1)
    tree = open_cgroups()
    assert cgroup_folders(server.pid) == set()
    if tree is not None:
        await tree.remove()


async def test_an_interrupt_ends_the_cell_and_not_the_session(kernel: JailedKernel) -> None:
    await kernel.run_cell("kept = 1", timeout_s=5)
    cell = asyncio.create_task(kernel.run_cell("print('before')\nwhile True: pass", timeout_s=60))
    await asyncio.sleep(0.1)
    kernel.interrupt()
    outcome = await cell
    assert (outcome.status, outcome.stdout) == ("error", "before\n")
    assert outcome.error is not None
    assert outcome.error.type == "KeyboardInterrupt"
    assert "kernel_main" not in outcome.error.traceback
    kernel.interrupt()
    assert (await kernel.run_cell("kept", timeout_s=5)).result == "1"


async def test_interrupts_at_any_moment_never_break_the_kernel(kernel: JailedKernel) -> None:
    async def interrupt_often() -> None:
        while True:
            kernel.interrupt()
            await asyncio.sleep(0)

    interrupting = asyncio.create_task(interrupt_often())
    for number in range(200):
        outcome = await kernel.run_cell(f"{number}", timeout_s=5)
        assert outcome.result == f"{number}" or (
            outcome.error is not None and outcome.error.type == "KeyboardInterrupt"
        )
    interrupting.cancel()
    assert (await kernel.run_cell("'alive'", timeout_s=5)).result == "'alive'"


async def test_output_after_the_cell_goes_to_no_other_cell(kernel: JailedKernel) -> None:
    await kernel.run_cell(
        "import subprocess, threading, time\n"
        "def late():\n time.sleep(0.05); print('LATE-THREAD')\n"
        "threading.Thread(target=late).start()\n"
        "subprocess.Popen(['sh', '-c', 'echo LATE-CHILD'])\n1",
        timeout_s=5,
    )
    await asyncio.sleep(0.2)
    outcome = await kernel.run_cell("print('mine')", timeout_s=5)
    assert (outcome.stdout, outcome.stderr) == ("mine\n", "")


async def test_what_was_printed_before_a_kill_is_kept(kernel: JailedKernel) -> None:
    outcome = await kernel.run_cell("print('first')\nimport os; os._exit(0)", timeout_s=5)
    assert (outcome.status, outcome.stdout) == ("killed", "first\n")


async def test_a_megabyte_of_output_arrives_whole_within_its_limit(supervisor: ProcessSupervisor) -> None:
    kernel = await supervisor.start(
        limits=LIMITS.model_copy(update={"output_bytes": 2 << 20}), runtime="python", seed=None
    )
    outcome = await kernel.run_cell("print('x' * (1 << 20))", timeout_s=5)
    await kernel.close()
    assert (len(outcome.stdout), outcome.truncated) == ((1 << 20) + 1, False)


@pytest.mark.parametrize("path", ["a.txt", "new/folder/a.txt"])
async def test_a_file_arrives_in_the_work_directory(kernel: JailedKernel, path: str) -> None:
    await kernel.put_file(path, b"\0\xff content")
    assert (await kernel.run_cell(f"open({path!r}, 'rb').read()", timeout_s=5)).result == "b'\\x00\\xff content'"


@pytest.mark.parametrize(
    "path", ["../a", "/tmp/a", "a/../../b", "", "a//b", ".", "a\0b", "link", "linked/a", "pipe", "folder"]
)
async def test_a_file_that_leads_elsewhere_is_refused(kernel: JailedKernel, path: str) -> None:
    await kernel.run_cell(
        "import os\n"
        "os.symlink('/tmp/target', 'link'); os.symlink('/tmp', 'linked'); os.mkfifo('pipe'); os.mkdir('folder')\n"
        "before = os.listdir('/tmp')",  # not empty where the runtime itself lies below /tmp
        timeout_s=5,
    )
    with pytest.raises(KernelFileError, match=".+"):
        await kernel.put_file(path, b"x")
    assert (await kernel.run_cell("os.listdir('/tmp') == before", timeout_s=5)).result == "True"


async def test_a_file_that_does_not_fit_is_refused(kernel: JailedKernel) -> None:
    with pytest.raises(KernelFileError, match="[Ll]arge|space"):
        await kernel.put_file("big", bytes(LIMITS.disk_mb + 1 << 20))
    assert kernel.alive


async def test_the_jail_holds_and_says_how(supervisor: ProcessSupervisor, tier: Tier) -> None:
    assert await supervisor.self_test() is None
    isolation = supervisor.isolation
    assert (isolation.tier, isolation.seccomp) == (tier, "allow-list")
    assert isolation.host_uid == ("per-session" if os.geteuid() == 0 else "shared")


async def test_a_runtime_below_a_closed_temporary_folder_works(config: SupervisorConfig, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)
    runtime = tmp_path / "clone/env"
    making = await asyncio.create_subprocess_exec(PYTHON, "-m", "venv", "--without-pip", runtime)
    assert await making.wait() == 0
    supervisor = await open_supervisor(replace(config, runtimes={"python": RuntimeConfig(runtime / "bin/python")}))
    kernel = await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    outcome = await kernel.run_cell("import sys, json; sys.prefix", timeout_s=5)
    await supervisor.close()
    assert outcome.result == repr(str(runtime))


async def test_when_the_spawner_dies_its_sessions_die_and_the_next_session_starts(config: SupervisorConfig) -> None:
    supervisor = await open_supervisor(config)
    kernel = await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    os.kill(youngest_spawner(), signal.SIGKILL)
    await becomes(lambda: kernel.alive, False)
    following = await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    assert (await following.run_cell("1 + 1", timeout_s=5)).result == "2"
    await supervisor.close()


async def test_many_sessions_start_at_once(supervisor: ProcessSupervisor) -> None:
    limits = Limits(cell_timeout_s=5, memory_mb=64, processes=4, disk_mb=4, output_bytes=1024)
    kernels = await asyncio.gather(*(supervisor.start(limits=limits, runtime="python", seed=None) for _ in range(8)))
    assert len({kernel.pid for kernel in kernels}) == 8
    await asyncio.gather(*(kernel.close() for kernel in kernels))


def youngest_spawner() -> int:
    """The suite's own one is older. By the time of its start: numbers of processes wrap around."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found = [
        int(pid) for pid in children if "cellar_executor.kernels.spawner" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    return max(found, key=started_at)


def held_by_the_server() -> tuple[int, int]:
    return open_fds(), len(cgroup_folders())


def cgroup_folders(server: int | None = None) -> set[str]:
    return {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{TREE_PREFIX}{server or os.getpid()}-*/**/")}

"""Warm sessions from real zygotes in real jails. Attacks on them: tests/sandbox."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from cellar_client.schemas import Limits
from cellar_executor.kernel import IsolationUnavailable, KernelUnavailable, RuntimeConfig, SupervisorConfig
from cellar_executor.kernels import supervisor as supervisor_module
from cellar_executor.kernels import warm
from cellar_executor.kernels.hierarchy import TREE_PREFIX
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.resources import Resources
from cellar_executor.kernels.supervisor import ProcessSupervisor, open_supervisor
from cellar_executor.kernels.watchdog import resident_kb
from cellar_executor.kernels.zygote import Zygote

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRONMENT = Path(__file__).parents[3] / ".venv"
READY = Limits(cell_timeout_s=5, memory_mb=128, processes=16, disk_mb=16, output_bytes=64 << 10)
OTHER = READY.model_copy(update={"memory_mb": 96, "processes": 9, "disk_mb": 8})
CONFIG = SupervisorConfig(
    runtimes={"python": RuntimeConfig(ENVIRONMENT / "envs/runtime/bin/python", ("json", "numpy.random"))},
    nsjail=ENVIRONMENT / "bin/nsjail",
    zygotes=1,
    ready_sessions=3,
    ready_limits=READY,
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def supervisor() -> AsyncIterator[ProcessSupervisor]:
    supervisor = await open_supervisor(CONFIG)
    yield supervisor
    await supervisor.close()


async def start(supervisor: ProcessSupervisor, limits: Limits = READY, seed: int | None = None) -> JailedKernel:
    return await supervisor.start(limits=limits, runtime="python", seed=seed)


async def value(kernel: JailedKernel, code: str) -> str | None:
    outcome = await kernel.run_cell(code, timeout_s=5)
    assert outcome.status == "ok", outcome
    return outcome.result


async def test_a_session_is_there_before_it_is_asked_for_with_its_libraries(supervisor: ProcessSupervisor) -> None:
    await until(lambda: len(ready(supervisor)) == 3)
    waiting = ready(supervisor)
    kernel = await start(supervisor)
    assert kernel.pid in waiting
    assert (
        await value(kernel, "import sys; [name in sys.modules for name in ('json', 'numpy.random')]") == "[True, True]"
    )
    await kernel.close()


async def test_time_and_output_limits_do_not_matter_to_a_session_that_is_ready(supervisor: ProcessSupervisor) -> None:
    await until(lambda: ready(supervisor))
    waiting = ready(supervisor)
    kernel = await start(supervisor, READY.model_copy(update={"cell_timeout_s": 1, "output_bytes": 100}))
    assert kernel.pid in waiting
    outcome = await kernel.run_cell("print('x' * 1000)", timeout_s=5)
    assert outcome.truncated
    await kernel.close()


async def test_a_session_with_other_limits_is_made_for_them(supervisor: ProcessSupervisor) -> None:
    waiting = ready(supervisor)
    kernel = await start(supervisor, OTHER)
    assert kernel.pid not in waiting
    code = "import os, resource; (resource.getrlimit(resource.RLIMIT_NPROC)[0], os.statvfs('.').f_blocks * 4096)"
    assert await value(kernel, code) == f"(9, {8 << 20})"
    assert [limit for limit in group_limits(kernel.pid, "pids.max") if limit != "9"] == []
    await kernel.close()


async def test_a_session_is_in_a_group_of_its_own_which_counts(supervisor: ProcessSupervisor) -> None:
    if supervisor.isolation.cgroup == "none":
        pytest.skip("no control group can be made here")
    one, other = await start(supervisor), await start(supervisor)
    assert TREE_PREFIX in groups_of(one)
    assert groups_of(one) != groups_of(other)
    outcome = await one.run_cell("x = bytearray(b'x') * (30 << 20); sum(range(10**6))", timeout_s=5)
    assert outcome.peak_memory_bytes is not None
    assert 30 << 20 < outcome.peak_memory_bytes < 128 << 20
    await asyncio.gather(one.close(), other.close())


@pytest.mark.parametrize("limits", [READY, OTHER], ids=["ready", "made"])
async def test_a_seeded_session_repeats_and_another_does_not(supervisor: ProcessSupervisor, limits: Limits) -> None:
    kernels = [await start(supervisor, limits, seed) for seed in (7, 7, None, None)]
    drawn = [await value(kernel, "import random, numpy; (random.random(), numpy.random.rand())") for kernel in kernels]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    await asyncio.gather(*(kernel.close() for kernel in kernels))


async def test_the_self_test_takes_no_session_that_is_ready(supervisor: ProcessSupervisor) -> None:
    await until(lambda: len(ready(supervisor)) == 3)
    waiting = ready(supervisor)
    assert await supervisor.self_test() is None
    assert ready(supervisor) == waiting


async def test_both_tiers_are_offered(supervisor: ProcessSupervisor) -> None:
    kernel = await supervisor.start(limits=READY, runtime="python", seed=None, tier="strict")
    assert await value(kernel, "import sys; 'numpy' in sys.modules") == "False"
    await kernel.close()


async def test_many_at_once_have_uids_of_their_own_and_leave_nothing(supervisor: ProcessSupervisor) -> None:
    await until(lambda: len(ready(supervisor)) == 3)
    before = open_fds(), groups()
    kernels = await asyncio.gather(*(start(supervisor, OTHER) for _ in range(20)))
    if os.geteuid() == 0:
        assert len({host_uid(kernel) for kernel in kernels}) == 20
    await asyncio.gather(*(kernel.close() for kernel in kernels))
    assert (open_fds(), groups()) == before


async def test_a_start_that_is_given_up_leaves_nothing(supervisor: ProcessSupervisor) -> None:
    await until(lambda: len(ready(supervisor)) == 3)
    before = open_fds(), groups()
    for pause_s in (0, 0.001, 0.003, 0.006):
        starting = asyncio.create_task(start(supervisor, OTHER))
        await asyncio.sleep(pause_s)
        starting.cancel()
        (started,) = await asyncio.gather(starting, return_exceptions=True)
        if isinstance(started, JailedKernel):
            await started.close()  # it was faster
    await until(lambda: (open_fds(), groups()) == before)


async def test_a_clone_that_cannot_confine_itself_is_reported_and_leaves_nothing(
    supervisor: ProcessSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: len(ready(supervisor)) == 3)
    before = open_fds(), groups()
    monkeypatch.setattr(warm, "session_configuration", lambda limits: {"niceness": 5})
    with pytest.raises(KernelUnavailable, match="KeyError"):
        await start(supervisor, OTHER)
    await until(lambda: (open_fds(), groups()) == before)


async def test_a_zygote_is_replaced_when_its_uids_are_used_up_and_ends_with_its_last_session() -> None:
    others = zygotes()
    supervisor = await open_supervisor(replace(CONFIG, recycle_after_sessions=5, ready_sessions=1))
    first = zygotes() - others
    kernels = [await start(supervisor, OTHER) for _ in range(4)]
    await until(lambda: zygotes() - others - first)
    more = [await start(supervisor, OTHER) for _ in range(3)]
    assert [await value(kernel, "1 + 1") for kernel in (*kernels, *more)] == ["2"] * 7
    if os.geteuid() == 0:
        assert len({host_uid(kernel) for kernel in (*kernels, *more)}) == 7
    await asyncio.gather(*(kernel.close() for kernel in kernels))
    await until(lambda: not first & zygotes())
    assert [await value(kernel, "1 + 1") for kernel in more] == ["2"] * 3
    await supervisor.close()
    assert zygotes() == others


async def test_when_a_zygote_is_killed_its_sessions_are_dead_and_new_ones_start() -> None:
    others = zygotes()
    supervisor = await open_supervisor(CONFIG)
    kernel, other = await start(supervisor), await start(supervisor, OTHER)
    running = asyncio.create_task(kernel.run_cell("import time; time.sleep(60)", timeout_s=60))
    await asyncio.sleep(0.1)
    (zygote,) = zygotes() - others
    os.kill(zygote, signal.SIGKILL)
    assert (await asyncio.wait_for(running, 5)).status == "killed"
    await until(lambda: not other.alive)
    following = await start(supervisor)
    assert await value(following, "1 + 1") == "2"
    await supervisor.close()


async def test_a_closed_supervisor_refuses_at_once_and_leaves_no_session() -> None:
    supervisor = await open_supervisor(CONFIG)
    kernel = await start(supervisor)
    await supervisor.close()
    assert not kernel.alive
    with pytest.raises(KernelUnavailable, match="closing"):
        await asyncio.wait_for(start(supervisor), 5)


async def test_a_session_whose_zygote_dies_meanwhile_is_made_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    others = zygotes()
    supervisor = await open_supervisor(CONFIG)
    make_clone, victims = warm.make_clone, zygotes() - others

    async def dying(resources: Resources, zygote: Zygote, limits: Limits) -> JailedKernel:
        if victims:
            os.kill(victims.pop(), signal.SIGKILL)
            await until(lambda: not zygote.alive)
            raise KernelUnavailable("it died")
        return await make_clone(resources, zygote, limits)

    monkeypatch.setattr(warm, "make_clone", dying)
    assert await value(await start(supervisor, OTHER), "1 + 1") == "2"
    await supervisor.close()


async def test_without_control_groups_a_session_is_killed_for_its_own_memory_and_not_for_its_zygotes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor_module, "open_cgroups", lambda: None)
    runtimes = {"python": RuntimeConfig(CONFIG.runtimes["python"].python)}
    supervisor = await open_supervisor(replace(CONFIG, runtimes=runtimes, ready_sessions=0))
    small = READY.model_copy(update={"memory_mb": 32})
    innocent, greedy = await start(supervisor, small), await start(supervisor)
    assert resident_kb(innocent.pid or 0) > small.memory_mb << 10
    code = (
        "import os, time\n"
        "for _ in range(3):\n"
        " if not os.fork():\n"
        "  x = bytearray(b'x') * (60 << 20); time.sleep(60)\n"
        "time.sleep(60)"
    )
    assert (await greedy.run_cell(code, timeout_s=20)).status == "oom"
    assert await value(innocent, "1 + 1") == "2"
    await supervisor.close()


async def test_a_zygote_that_does_not_start_is_reported_with_what_it_said(tmp_path: Path) -> None:
    """A runtime with a module that fails when it is loaded; one that is not there is no reason."""
    before = zygotes()
    python = tmp_path / "env/bin/python"
    making = await asyncio.create_subprocess_exec(
        CONFIG.runtimes["python"].python, "-m", "venv", "--without-pip", tmp_path / "env"
    )
    assert await making.wait() == 0
    (packages,) = (tmp_path / "env/lib").glob("python*/site-packages")
    (packages / "failing.py").write_text("raise RuntimeError('of its own making')")
    runtimes = {"python": RuntimeConfig(python, ("not_there", "failing"))}
    with pytest.raises(IsolationUnavailable, match=r"(?s)zygote did not start.*of its own making"):
        await open_supervisor(replace(CONFIG, runtimes=runtimes))
    assert zygotes() == before


def ready(supervisor: ProcessSupervisor) -> set[int | None]:
    assert supervisor._warm is not None
    return {kernel.pid for kernel in supervisor._warm._runtimes["python"]._pool._ready}


def host_uid(kernel: JailedKernel) -> int:
    return os.stat(f"/proc/{kernel.pid}").st_uid


def groups_of(kernel: JailedKernel) -> str:
    return Path(f"/proc/{kernel.pid}/cgroup").read_text()


def group_limits(pid: int | None, name: str) -> list[str]:
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        controllers, path = line.split(":", 2)[1:]
        file = Path("/sys/fs/cgroup") / controllers / path.lstrip("/") / name
        if TREE_PREFIX in path and file.exists():
            found.append(file.read_text().strip())
    return found


def groups() -> set[str]:
    return {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{TREE_PREFIX}{os.getpid()}-*/*/")}


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def zygotes() -> set[int]:
    spawners = [pid for pid in children(os.getpid()) if "kernels.spawner" in command(pid)]
    jails = [nsjail for spawner in spawners for nsjail in children(spawner)]
    return {zygote for nsjail in jails for zygote in children(nsjail) if "zygote_main" in command(zygote)}


def children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


async def until(holds: Callable[[], object], within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)

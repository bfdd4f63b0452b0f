"""Makes isolated kernels on this host: the entry to the process side of the executor.

`open_supervisor` finds out what the host allows, and refuses where that is not isolation. Each session then gets an
nsjail of its own (tier `strict`): own namespaces, own control group, and an own uid of the host if the server is root.
"""

import asyncio
import heapq
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

from cellar_client.schemas import Isolation, Limits
from cellar_executor.kernel import IsolationUnavailable, KernelUnavailable, SupervisorConfig
from cellar_executor.kernels.cgroups import CgroupTree, SessionCgroup, open_cgroups
from cellar_executor.kernels.host import remedy
from cellar_executor.kernels.jail import (
    KERNEL_MAIN,
    NAMESPACES,
    WORKDIR,
    Jail,
    data_bytes,
    kernel_command,
    kernel_environment,
    render,
)
from cellar_executor.kernels.jailed_kernel import JailedKernel, KernelProcess
from cellar_executor.kernels.launch import CONFIGURATION, Launched, Plan, launch, read_log
from cellar_executor.kernels.runtime import Runtime, inspect_runtime
from cellar_executor.kernels.selftest import probe_jail
from cellar_executor.kernels.spawning import Spawner, open_spawner
from cellar_executor.kernels.watchdog import watch

log = logging.getLogger(__name__)

HOST_UID_BASE = 100_000
"""As root, session number n runs as this host uid + n: kernel quotas that count by uid then never cross sessions."""
SELF_TEST_LIMITS = Limits(cell_timeout_s=10, memory_mb=128, processes=8, disk_mb=8, output_bytes=4096)


async def open_supervisor(config: SupervisorConfig) -> "ProcessSupervisor":
    """A supervisor whose jails were seen to hold. Raises `IsolationUnavailable`."""
    runtimes = {name: await inspect_runtime(python) for name, python in config.runtimes.items()}
    isolated = not config.insecure_no_isolation
    if isolated and (config.nsjail is None or not os.access(config.nsjail, os.X_OK)):
        raise IsolationUnavailable(f"nsjail is missing ({config.nsjail}): `make setup`")
    supervisor = ProcessSupervisor(config, runtimes, open_cgroups() if isolated else None)
    try:
        await supervisor.open()
        problem = await supervisor.self_test()
        if problem is not None:
            raise IsolationUnavailable(f"a jail on this host does not hold: {problem}")
    except BaseException:
        await supervisor.close()
        raise
    return supervisor


class ProcessSupervisor:
    """Implements `cellar_executor.kernel.Supervisor`. Open with `open_supervisor`."""

    def __init__(self, config: SupervisorConfig, runtimes: dict[str, Runtime], cgroups: CgroupTree | None) -> None:
        self._config = config
        self._runtimes = runtimes
        self._cgroups = cgroups
        self._isolated = not config.insecure_no_isolation
        self._per_session_uid = self._isolated and os.geteuid() == 0
        self._spawner: Spawner | None = None
        self._opening_spawner = asyncio.Lock()
        self._sources: dict[Path, Path] = {}
        self._numbers = Numbers()
        self._kernels: dict[JailedKernel, Limits] = {}
        self._watchdog: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def isolation(self) -> Isolation:
        return Isolation(
            tier="strict" if self._isolated else "none",
            namespaces=list(NAMESPACES) if self._isolated else [],
            seccomp="allow-list" if self._isolated else "none",
            cgroup=self._cgroups.version.name if self._cgroups else "none",
            host_uid="per-session" if self._per_session_uid else "shared",
        )

    async def open(self) -> None:
        await self._live_spawner()
        if self._isolated and self._cgroups is None:
            self._watchdog = asyncio.create_task(watch(self._memory_limits))

    async def start(self, *, limits: Limits, runtime: str, seed: int | None) -> JailedKernel:
        try:
            launched, cgroup, held = await self._launch(limits, runtime, seed)
        except (OSError, IsolationUnavailable) as exc:
            raise KernelUnavailable(f"a kernel could not be started: {exc}") from exc
        process = kernel_process(launched, cgroup, held)
        kernel = JailedKernel(
            process, output_bytes=limits.output_bytes, interrupt_grace_s=self._config.interrupt_grace_s
        )
        self._kernels[kernel] = limits
        held.callback(self._kernels.pop, kernel)
        await make_ready(kernel, launched.log)
        return kernel

    async def self_test(self) -> str | None:
        """Also None without isolation, when a kernel starts at all: `isolation` tells that there is none."""
        try:
            kernel = await self.start(limits=SELF_TEST_LIMITS, runtime=next(iter(self._runtimes)), seed=None)
        except KernelUnavailable as exc:
            return f"no jail starts: {exc}. {remedy()}"
        try:
            return await probe_jail(kernel) if self._isolated else None
        finally:
            await kernel.close()

    async def close(self) -> None:
        self._closing = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        await asyncio.gather(*(kernel.close() for kernel in list(self._kernels)))
        if self._spawner is not None:
            await self._spawner.close()
        if self._cgroups is not None:
            await self._cgroups.remove()

    # --- starting ---

    async def _launch(
        self, limits: Limits, runtime: str, seed: int | None
    ) -> tuple[Launched, SessionCgroup | None, AsyncExitStack]:
        """The started process, and what it holds on the host: given back at once when it does not start."""
        async with AsyncExitStack() as held:
            number = self._numbers.take()
            held.callback(self._numbers.give_back, number)
            cgroup = self._cgroups.create(limits) if self._cgroups else None
            if cgroup is not None:
                held.push_async_callback(cgroup.remove)
            spawner = await self._live_spawner()
            plan = self._plan(self._runtimes[runtime], limits, seed, number, cgroup, held)
            return await launch(spawner, plan), cgroup, held.pop_all()

    async def _live_spawner(self) -> Spawner:
        async with self._opening_spawner:
            if self._closing:
                raise KernelUnavailable("the supervisor is closing")
            if self._spawner is not None and not self._spawner.alive:
                await self._spawner.close()
                self._spawner = None
            if self._spawner is None:
                trees = {tree for runtime in self._runtimes.values() for tree in runtime.trees} | {KERNEL_MAIN}
                spawner, self._sources = await open_spawner(sorted(trees) if self._per_session_uid else [])
                self._spawner = spawner
            return self._spawner

    def _plan(
        self,
        runtime: Runtime,
        limits: Limits,
        seed: int | None,
        number: int,
        cgroup: SessionCgroup | None,
        held: AsyncExitStack,
    ) -> Plan:
        workdir = WORKDIR if self._isolated else held.enter_context(tempfile.TemporaryDirectory())
        arguments = (json.dumps({"workdir": workdir, "seed": seed}),)
        environment = kernel_environment(workdir, runtime, seed)
        procs = cgroup.procs_files if cgroup else []
        if not self._isolated:
            argv = kernel_command(runtime, str(KERNEL_MAIN), arguments)
            return Plan(argv, environment, workdir, b"", procs, data_bytes(limits))
        host_uid = HOST_UID_BASE + number if self._per_session_uid else os.geteuid()
        jail = Jail(runtime, limits, host_uid, self._sources, environment, arguments)
        argv = (os.path.abspath(str(self._config.nsjail)), "--config", CONFIGURATION)
        return Plan(argv, {}, "/", render(jail), procs, data_bytes(limits))

    def _memory_limits(self) -> Iterable[tuple[JailedKernel, int]]:
        return ((kernel, limits.memory_mb) for kernel, limits in self._kernels.items())


def kernel_process(launched: Launched, cgroup: SessionCgroup | None, held: AsyncExitStack) -> KernelProcess:
    return KernelProcess(
        pidfd=launched.pidfd,
        control=launched.control,
        stdout=launched.stdout,
        stderr=launched.stderr,
        oom_kills=cgroup.oom_kills if cgroup else lambda: 0,
        release=held.aclose,
    )


async def make_ready(kernel: JailedKernel, nsjail_log: int) -> None:
    try:
        await kernel.ready()
    except KernelUnavailable as exc:
        reason = read_log(nsjail_log)
        log.error("a kernel did not start: %s", reason)
        raise KernelUnavailable(f"{exc}: {reason}") from exc
    finally:
        os.close(nsjail_log)


class Numbers:
    """Hands out the smallest number that is free."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def take(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1

    def give_back(self, number: int) -> None:
        heapq.heappush(self._free, number)

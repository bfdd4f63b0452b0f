"""Makes isolated kernels on this host: the entry to the process side of the executor.

`open_supervisor` finds out what the host allows, and refuses where that is not isolation. A session is then made in
one of two tiers: `warm`, a clone of a zygote, or `strict`, an nsjail of its own. In either it has namespaces, a control
group and, if the server is root, a host uid to itself.
"""

import asyncio
import os
from collections.abc import Mapping
from typing import Protocol

from cellar_client.schemas import Isolation, Limits, Tier
from cellar_executor.kernel import IsolationUnavailable, KernelUnavailable, Stock, SupervisorConfig
from cellar_executor.kernels.cgroups import open_cgroups
from cellar_executor.kernels.host import remedy
from cellar_executor.kernels.jail import NAMESPACES
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.resources import Resources
from cellar_executor.kernels.runtime import Runtime, inspect_runtime
from cellar_executor.kernels.selftest import probe_jail
from cellar_executor.kernels.strict import StrictTier
from cellar_executor.kernels.unisolated import UnisolatedTier
from cellar_executor.kernels.warm import WarmTier
from cellar_executor.kernels.watchdog import watch
from cellar_executor.kernels.zygote_jail import ZYGOTE_CODE

SELF_TEST_LIMITS = Limits(cell_timeout_s=10, memory_mb=128, processes=8, disk_mb=8, output_bytes=4096)


class KernelTier(Protocol):
    """One way to make kernels."""

    async def start(self, *, limits: Limits, runtime: str, seed: int | None) -> JailedKernel:
        """Raises `KernelUnavailable`, `IsolationUnavailable`, `OSError`."""
        ...


async def open_supervisor(config: SupervisorConfig) -> "ProcessSupervisor":
    """A supervisor whose jails were seen to hold. Raises `IsolationUnavailable`."""
    runtimes = {name: await inspect_runtime(runtime.python) for name, runtime in config.runtimes.items()}
    isolated = not config.insecure_no_isolation
    if isolated and (config.nsjail is None or not os.access(config.nsjail, os.X_OK)):
        raise IsolationUnavailable(f"nsjail is missing ({config.nsjail}): `make setup`")
    supervisor = ProcessSupervisor(config, runtimes)
    try:
        await supervisor.open()
    except BaseException:
        await supervisor.close()
        raise
    return supervisor


class ProcessSupervisor:
    """Implements `cellar_executor.kernel.Supervisor`. Open with `open_supervisor`."""

    def __init__(self, config: SupervisorConfig, runtimes: Mapping[str, Runtime]) -> None:
        self._isolated = not config.insecure_no_isolation
        self._tier: Tier | None = config.tier if self._isolated else None
        self._some_runtime = next(iter(runtimes))
        trees = {tree for runtime in runtimes.values() for tree in runtime.trees}
        self._resources = Resources(
            nsjail=config.nsjail if self._isolated else None,
            staged={*trees, *ZYGOTE_CODE},
            cgroups=open_cgroups() if self._isolated else None,
            interrupt_grace_s=config.interrupt_grace_s,
        )
        self._warm = WarmTier(self._resources, runtimes, config) if self._tier == "warm" else None
        self._strict = StrictTier(self._resources, runtimes)
        self._unisolated = UnisolatedTier(self._resources, runtimes)
        self._watchdog: asyncio.Task[None] | None = None

    @property
    def isolation(self) -> Isolation:
        cgroups = self._resources.cgroups
        return Isolation(
            tier=self._tier or "none",
            namespaces=list(NAMESPACES) if self._isolated else [],
            seccomp="allow-list" if self._isolated else "none",
            cgroup=cgroups.version.name if cgroups else "none",
            host_uid="per-session" if self._resources.own_uids else "shared",
        )

    async def open(self) -> None:
        """Raises `IsolationUnavailable` unless each tier that is offered holds."""
        await self._resources.spawner()
        if self._isolated and self._resources.cgroups is None:
            self._watchdog = asyncio.create_task(watch(self._resources.memory_limits))
        await self._insist_on("strict" if self._isolated else None)
        if self._warm is not None:
            await self._warm.open()
            await self._insist_on("warm")

    async def start(self, *, limits: Limits, runtime: str, seed: int | None, tier: Tier | None = None) -> JailedKernel:
        if self._resources.fence.fallen:
            raise KernelUnavailable("this server's time to have kernels is over")
        try:
            return await self._chosen(tier or self._tier).start(limits=limits, runtime=runtime, seed=seed)
        except (OSError, IsolationUnavailable) as exc:
            raise KernelUnavailable(f"a kernel could not be started: {exc}") from exc

    def fence(self, until: float) -> None:
        self._resources.fence.put_off(until)

    def stock(self) -> Mapping[str, Stock]:
        return {} if self._warm is None else self._warm.stock()

    async def self_test(self) -> str | None:
        """Also None without isolation, when a kernel starts at all: `isolation` tells that there is none."""
        return await self._probe(self._tier)

    async def close(self) -> None:
        self._resources.refuse()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._warm is not None:
            await self._warm.close()
        await self._resources.close()

    def _chosen(self, tier: Tier | None) -> KernelTier:
        if tier is None:
            return self._unisolated
        if not self._isolated:
            raise KernelUnavailable("this server has no isolation")
        if tier == "strict":
            return self._strict
        if self._warm is None:
            raise KernelUnavailable("this server has no warm tier")
        return self._warm

    async def _insist_on(self, tier: Tier | None) -> None:
        problem = await self._probe(tier)
        if problem is not None:
            raise IsolationUnavailable(f"a jail on this host does not hold: {problem}")

    async def _probe(self, tier: Tier | None) -> str | None:
        """With limits of its own, so that no session is taken from those that are ready."""
        try:
            kernel = await self.start(limits=SELF_TEST_LIMITS, runtime=self._some_runtime, seed=None, tier=tier)
        except KernelUnavailable as exc:
            return f"no jail starts: {exc}" if self._resources.fence.fallen else f"no jail starts: {exc}. {remedy()}"
        try:
            return await probe_jail(kernel, grouped=self._resources.cgroups is not None) if self._isolated else None
        finally:
            await kernel.close()

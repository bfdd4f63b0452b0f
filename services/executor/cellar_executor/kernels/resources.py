"""What all tiers draw on: the spawner, the host's control groups and uids; and the register of what lives."""

import asyncio
import os
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from cellar_client.schemas import Limits
from cellar_executor.kernel import KernelUnavailable
from cellar_executor.kernels.cgroups import CgroupTree, SessionCgroup
from cellar_executor.kernels.fence import Fence
from cellar_executor.kernels.jailed_kernel import JailedKernel, KernelProcess
from cellar_executor.kernels.spawning import Spawner, open_spawner
from cellar_executor.kernels.uids import HostUids

FENCE_PAUSE_S = 0.1


class Resources:
    def __init__(
        self, *, nsjail: Path | None, staged: Iterable[Path], cgroups: CgroupTree | None, interrupt_grace_s: float
    ) -> None:
        self._nsjail = nsjail
        self._staged = sorted(staged)
        self._grace_s = interrupt_grace_s
        self._uids = HostUids()
        self._spawner: Spawner | None = None
        self._sources: dict[Path, Path] = {}
        self._opening_spawner = asyncio.Lock()
        self.fence = Fence()
        self._closed = False
        self.cgroups = cgroups
        self.own_uids = nsjail is not None and os.geteuid() == 0
        """Whether jails have uids of the host's to themselves."""
        self._kernels: dict[JailedKernel, Limits] = {}

    def nsjail_command(self, configuration: str) -> tuple[str, ...]:
        return (os.path.abspath(str(self._nsjail)), "--config", configuration)

    async def spawner(self) -> Spawner:
        """A live one. Raises `KernelUnavailable`, `IsolationUnavailable`."""
        async with self._opening_spawner:
            if self._closed:
                raise KernelUnavailable("the supervisor is closing")
            if self._spawner is not None and not self._spawner.alive:
                await self._spawner.close()
                self._spawner = None
            if self._spawner is None:
                self._spawner, self._sources = await open_spawner(self._staged if self.own_uids else [], self.fence)
            return self._spawner

    async def unfenced(self) -> None:
        """Until kernels may be had. Looked at again and again, because other threads move the fence."""
        while self.fence.fallen:  # noqa: ASYNC110
            await asyncio.sleep(FENCE_PAUSE_S)

    async def sources(self) -> Mapping[Path, Path]:
        """Where a jail's own uid can reach a tree that may lie in a folder closed to it."""
        await self.spawner()
        return self._sources

    def take_uids(self, count: int, held: AsyncExitStack) -> int:
        """The first of so many uids of the host; as an ordinary user our own."""
        if not self.own_uids:
            return os.geteuid()
        first = self._uids.take(count)
        held.callback(self._uids.give_back, first)
        return first

    async def make_cgroup(self, limits: Limits, processes: int, held: AsyncExitStack) -> SessionCgroup | None:
        if self.cgroups is None:
            return None
        cgroup = await self.cgroups.create(limits, processes=processes)
        held.push_async_callback(cgroup.remove)
        return cgroup

    def make_kernel(self, process: KernelProcess, limits: Limits, held: AsyncExitStack) -> JailedKernel:
        """`held` is what `process.release` gives back."""
        kernel = JailedKernel(process, output_bytes=limits.output_bytes, interrupt_grace_s=self._grace_s)
        self._kernels[kernel] = limits
        held.callback(self._kernels.pop, kernel)
        return kernel

    def memory_limits(self) -> Iterable[tuple[JailedKernel, int]]:
        return ((kernel, limits.memory_mb) for kernel, limits in self._kernels.items())

    def refuse(self) -> None:
        """No more kernels from now on."""
        self._closed = True

    async def close(self) -> None:
        self.refuse()
        await asyncio.gather(*(kernel.close_jail() for kernel in list(self._kernels)))
        if self._spawner is not None:
            await self._spawner.close()
        self.fence.close()
        if self.cgroups is not None:
            await self.cgroups.remove()

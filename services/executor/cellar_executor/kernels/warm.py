"""Tier `warm`: each session is a clone of a zygote that has its libraries loaded, in namespaces of its own."""

import asyncio
import json
import os
import platform
import socket
import struct
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack

from cellar_client.schemas import Limits
from cellar_executor.kernel import IsolationUnavailable, KernelUnavailable, Stock, SupervisorConfig
from cellar_executor.kernels.jail import render, session_configuration
from cellar_executor.kernels.jailed_kernel import JailedKernel, KernelProcess
from cellar_executor.kernels.launch import CONFIGURATION, Plan, closing, control_pair, launch_zygote, pipe
from cellar_executor.kernels.pool import Pool
from cellar_executor.kernels.resources import Resources
from cellar_executor.kernels.runtime import Runtime
from cellar_executor.kernels.seccomp import NUMBERS
from cellar_executor.kernels.usage import Usage
from cellar_executor.kernels.zygote import Zygote
from cellar_executor.kernels.zygote_jail import ZygoteJail, describe_zygote
from cellar_executor.kernels.zygotes import Zygotes

WARM_TIMEOUT_S = 120.0


class WarmTier:
    def __init__(self, resources: Resources, runtimes: Mapping[str, Runtime], config: SupervisorConfig) -> None:
        self._runtimes = {
            name: WarmRuntime(resources, runtime, config.runtimes[name].preimports, config)
            for name, runtime in runtimes.items()
        }

    async def open(self) -> None:
        """Raises `IsolationUnavailable` when a zygote does not start."""
        if platform.machine() not in NUMBERS:
            raise IsolationUnavailable(f"there is no warm tier for {platform.machine()}: use --isolation strict")
        try:
            await asyncio.gather(*(runtime.open() for runtime in self._runtimes.values()))
        except (KernelUnavailable, OSError) as exc:
            raise IsolationUnavailable(str(exc)) from exc

    def stock(self) -> dict[str, Stock]:
        return {name: runtime.stock() for name, runtime in self._runtimes.items()}

    async def start(self, *, limits: Limits, runtime: str, seed: int | None) -> JailedKernel:
        kernel = await self._runtimes[runtime].take(limits)
        if seed is not None:
            await kernel.seed(seed)
        return kernel

    async def close(self) -> None:
        await asyncio.gather(*(runtime.close() for runtime in self._runtimes.values()))


class WarmRuntime:
    """The zygotes of one runtime, and the sessions of it that are ready."""

    def __init__(
        self, resources: Resources, runtime: Runtime, preimports: tuple[str, ...], config: SupervisorConfig
    ) -> None:
        self._resources = resources
        self._runtime = runtime
        self._preimports = preimports
        self._capacity = config.recycle_after_sessions
        self._ready_limits = config.ready_limits
        self._pool = Pool(
            self._make_ready, size=config.ready_sessions if config.ready_limits else 0, workers=config.zygotes
        )
        self._zygotes = Zygotes(
            self._start_zygote,
            count=config.zygotes,
            recycle_after_s=config.recycle_after_s,
            on_retired=lambda zygote: self._pool.discard(zygote.kernels),
        )

    async def open(self) -> None:
        await self._zygotes.open()
        self._pool.open()

    def stock(self) -> Stock:
        return Stock(ready=len(self._pool), zygotes=len(self._zygotes), made=self._zygotes.made)

    async def take(self, limits: Limits) -> JailedKernel:
        """One that is ready, or one made for these limits. Raises `KernelUnavailable`."""
        if self._ready_limits is not None and same_jail(limits, self._ready_limits):
            kernel = self._pool.take()
            if kernel is not None:
                kernel.output_bytes = limits.output_bytes
                return kernel
        return await self._make(limits)

    async def close(self) -> None:
        await self._pool.close()
        await self._zygotes.close()

    async def _make(self, limits: Limits) -> JailedKernel:
        while True:
            async with self._zygotes.turn() as zygote:
                try:
                    return await make_clone(self._resources, zygote, limits)
                except KernelUnavailable:
                    if zygote.alive:
                        raise  # else it died in the middle of this: another one can do it

    async def _make_ready(self) -> JailedKernel:
        assert self._ready_limits is not None
        async with self._zygotes.background_turn() as zygote:
            return await make_clone(self._resources, zygote, self._ready_limits)

    async def _start_zygote(self) -> Zygote:
        await self._resources.unfenced()
        async with AsyncExitStack() as held:
            own_uids = self._resources.own_uids
            jail = ZygoteJail(
                runtime=self._runtime,
                preimports=self._preimports,
                host_uid=self._resources.take_uids(1 + self._capacity, held),
                clone_uids=self._capacity if own_uids else 0,
                sources=await self._resources.sources(),
            )
            cgroups = self._resources.cgroups
            plan = Plan(
                argv=self._resources.nsjail_command(CONFIGURATION),
                environment={},
                workdir="/",
                configuration=render(describe_zygote(jail)),
                join_files=cgroups.zygotes_join_files if cgroups else [],
                data_bytes=None,
            )
            launched = await launch_zygote(await self._resources.spawner(), plan)
            zygote = Zygote(launched, capacity=self._capacity, release=held.pop_all().aclose)
        await zygote.warm(WARM_TIMEOUT_S)
        return zygote


def same_jail(one: Limits, other: Limits) -> bool:
    """Whether a jail made for the one will do for the other: time and output are watched from outside."""
    outside = {"cell_timeout_s", "output_bytes"}
    return one.model_dump(exclude=outside) == other.model_dump(exclude=outside)


async def make_clone(resources: Resources, zygote: Zygote, limits: Limits) -> JailedKernel:
    """A session, ready. Raises `KernelUnavailable`; then nothing of it is left."""
    try:
        async with AsyncExitStack() as held:
            kernel = await _clone(resources, zygote, limits, held)
    except OSError as exc:
        raise KernelUnavailable(f"a session could not be made: {exc}") from exc
    await kernel.ready()
    return kernel


async def _clone(resources: Resources, zygote: Zygote, limits: Limits, held: AsyncExitStack) -> JailedKernel:
    """The clone joins its control group itself: to move another process may take the host's kernel some 10 ms.

    If this fails the clone finds its control channel closed, and ends.
    """
    cgroup = await resources.make_cgroup(limits, limits.processes, held)
    with ExitStack() as ours, ExitStack() as theirs:
        control, clones_end = control_pair(ours, theirs)
        pidfd = closing(ours, await zygote.clone(clones_end))
        stdout, stdout_end = pipe(ours, theirs)
        stderr, stderr_end = pipe(ours, theirs)
        joins = cgroup.open_joins(theirs) if cgroup else []
        socket.send_fds(control, [configuration_frame(limits)], [stdout_end, stderr_end, *joins])
        kernel_pidfd = closing(ours, os.dup(pidfd))
        lasting = held.pop_all()
        process = KernelProcess(
            pidfd=pidfd,
            control=control,
            stdout=stdout,
            stderr=stderr,
            usage=cgroup.usage if cgroup else Usage,
            release=lasting.aclose,
            kernel_pidfd=kernel_pidfd,
        )
        ours.pop_all()
    kernel = resources.make_kernel(process, limits, lasting)
    zygote.adopt(kernel)
    lasting.callback(zygote.forget, kernel)
    return kernel


def configuration_frame(limits: Limits) -> bytes:
    payload = json.dumps(session_configuration(limits)).encode()
    return struct.pack("!I", len(payload)) + payload

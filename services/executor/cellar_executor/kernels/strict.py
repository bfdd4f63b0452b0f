"""Tier `strict`: each session gets an nsjail and a Python of its own."""

import json
from collections.abc import Mapping
from contextlib import AsyncExitStack

from cellar_client.schemas import Limits
from cellar_executor.kernels.jail import WORKDIR, Jail, data_bytes, describe, kernel_environment, render
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.kernel_process import start_kernel
from cellar_executor.kernels.launch import CONFIGURATION, Plan
from cellar_executor.kernels.resources import Resources
from cellar_executor.kernels.runtime import Runtime

NSJAIL_PROCESSES = 2
"""nsjail itself, and the process that becomes it; RLIMIT_NPROC holds the cells to the exact number."""


class StrictTier:
    def __init__(self, resources: Resources, runtimes: Mapping[str, Runtime]) -> None:
        self._resources = resources
        self._runtimes = runtimes

    async def start(self, *, limits: Limits, runtime: str, seed: int | None) -> JailedKernel:
        async with AsyncExitStack() as held:
            cgroup = await self._resources.make_cgroup(limits, limits.processes + NSJAIL_PROCESSES, held)
            jail = Jail(
                runtime=self._runtimes[runtime],
                limits=limits,
                host_uid=self._resources.take_uids(1, held),
                sources=await self._resources.sources(),
                environment=kernel_environment(WORKDIR, self._runtimes[runtime], seed),
                kernel_arguments=(json.dumps({"workdir": WORKDIR, "seed": seed}),),
            )
            plan = Plan(
                argv=self._resources.nsjail_command(CONFIGURATION),
                environment={},
                workdir="/",
                configuration=render(describe(jail)),
                join_files=cgroup.join_files if cgroup else [],
                data_bytes=data_bytes(limits),
            )
            return await start_kernel(self._resources, plan, limits, cgroup, held)

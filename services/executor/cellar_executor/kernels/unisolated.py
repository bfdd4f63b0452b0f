"""Kernels as plain child processes, without any isolation: for code that is trusted."""

import json
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack

from cellar_client.schemas import Limits
from cellar_executor.kernels.jail import KERNEL_MAIN, data_bytes, kernel_environment, python_command
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.kernel_process import start_kernel
from cellar_executor.kernels.launch import Plan
from cellar_executor.kernels.resources import Resources
from cellar_executor.kernels.runtime import Runtime


class UnisolatedTier:
    def __init__(self, resources: Resources, runtimes: Mapping[str, Runtime]) -> None:
        self._resources = resources
        self._runtimes = runtimes

    async def start(self, *, limits: Limits, runtime: str, seed: int | None) -> JailedKernel:
        async with AsyncExitStack() as held:
            workdir = held.enter_context(tempfile.TemporaryDirectory())
            arguments = (json.dumps({"workdir": workdir, "seed": seed}),)
            plan = Plan(
                argv=python_command(self._runtimes[runtime], KERNEL_MAIN, arguments),
                environment=kernel_environment(workdir, self._runtimes[runtime], seed),
                workdir=workdir,
                configuration=b"",
                join_files=[],
                data_bytes=data_bytes(limits),
            )
            return await start_kernel(self._resources, plan, limits, None, held)

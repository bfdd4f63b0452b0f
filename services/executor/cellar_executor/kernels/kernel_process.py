"""From a plan to a kernel that is ready, in a process of its own."""

import logging
import os
from contextlib import AsyncExitStack

from cellar_client.schemas import Limits
from cellar_executor.kernel import KernelUnavailable
from cellar_executor.kernels.cgroups import SessionCgroup
from cellar_executor.kernels.jailed_kernel import JailedKernel, KernelProcess
from cellar_executor.kernels.launch import Plan, launch, read_log
from cellar_executor.kernels.resources import Resources
from cellar_executor.kernels.usage import Usage

log = logging.getLogger(__name__)


async def start_kernel(
    resources: Resources, plan: Plan, limits: Limits, cgroup: SessionCgroup | None, held: AsyncExitStack
) -> JailedKernel:
    """The kernel takes over what is `held`. Raises `KernelUnavailable`, with what nsjail said."""
    launched = await launch(await resources.spawner(), plan)
    lasting = held.pop_all()
    process = KernelProcess(
        pidfd=launched.pidfd,
        control=launched.control,
        stdout=launched.stdout,
        stderr=launched.stderr,
        usage=cgroup.usage if cgroup else Usage,
        release=lasting.aclose,
    )
    kernel = resources.make_kernel(process, limits, lasting)
    try:
        await kernel.ready()
    except KernelUnavailable as exc:
        reason = read_log(launched.log)
        log.error("a kernel did not start: %s", reason)
        raise KernelUnavailable(f"{exc}: {reason}") from exc
    finally:
        os.close(launched.log)
    return kernel

"""A real kernel in a plain child process: what a `JailedKernel` does, whatever isolates it."""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from cellar_executor.kernel import CellOutcome
from cellar_executor.kernels import kernel_main
from cellar_executor.kernels.jailed_kernel import JailedKernel, KernelProcess
from cellar_executor.kernels.usage import Usage

PYTHON = Path(__file__).parents[3] / ".venv/envs/runtime/bin/python"
ENVIRONMENT = {"LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}


async def start_kernel(
    workdir: Path,
    *,
    seed: int | None = None,
    usage: Callable[[], Usage] = Usage,
    output_bytes: int = 64 << 10,
    program: Path = Path(kernel_main.__file__),
    known: bool = False,
) -> JailedKernel:
    """A ready kernel that works in `workdir`; closing it reaps its process."""
    control, kernel_end = socket.socketpair()
    control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    stdout, stdout_end = os.pipe()
    stderr, stderr_end = os.pipe()
    options = json.dumps({"workdir": str(workdir), "seed": seed})
    process = spawn([str(PYTHON), "-P", "-s", "-B", str(program), options], stdout_end, stderr_end, kernel_end.detach())

    async def release() -> None:
        await asyncio.to_thread(process.wait)

    kernel_pidfd = os.pidfd_open(process.pid) if known else None
    jailed = KernelProcess(os.pidfd_open(process.pid), control, stdout, stderr, usage, release, kernel_pidfd)
    kernel = JailedKernel(jailed, output_bytes=output_bytes, interrupt_grace_s=0.3)
    await kernel.ready()
    return kernel


async def run(kernel: JailedKernel, code: str, timeout_s: float = 5) -> CellOutcome:
    return await kernel.run_cell(code, timeout_s=timeout_s)


async def result(kernel: JailedKernel, code: str) -> str | None:
    return (await run(kernel, code)).result


def spawn(command: list[str], *fds: int) -> subprocess.Popen[bytes]:
    """Start `command` with `fds` as its 1, 2 and 3; they are closed here."""
    wiring = " ".join(f"{number}>&{fd}" for number, fd in enumerate(fds, 1))
    shell = ["bash", "-c", f'exec {wiring}; exec "$@"', "-", *command]
    try:
        return subprocess.Popen(shell, pass_fds=fds, stdin=subprocess.DEVNULL, env=ENVIRONMENT)
    finally:
        for fd in fds:
            os.close(fd)

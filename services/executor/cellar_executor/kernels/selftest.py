"""Is a jail one? Checks made from outside on the process itself, then attempts made from inside."""

import os
import tempfile
from pathlib import Path

from cellar_executor.kernels.jailed_kernel import JailedKernel

PROBE_TIMEOUT_S = 10.0

_REFUSED = """
def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False

import os, socket
"""
INSIDE = {
    "the network is reachable": "refused(socket.socket)",
    "/proc is visible": "not os.path.exists('/proc/self')",
    "the system's libraries are writable": "refused(lambda: open('/usr/lib/cellar', 'w'))",
    "the kernel's own code is writable": "refused(lambda: open('/cellar/kernel_main.py', 'a'))",
    "the root is writable": "refused(lambda: os.mkdir('/cellar-probe'))",
    "the work directory is not writable": "bool(open('probe', 'w').write('x'))",
    "processes are not limited": "refused(lambda: [os.fork() or __import__('time').sleep(60) for _ in range(200)])",
}
"""What is wrong -> an expression that is True when it is not."""
STATUS = {
    "it keeps capabilities": ("CapEff", "0000000000000000"),
    "it can regain capabilities": ("CapBnd", "0000000000000000"),
    "it can gain privileges": ("NoNewPrivs", "1"),
    "system calls are not filtered": ("Seccomp", "2"),
}
"""What is wrong -> a line of /proc/PID/status as it must read."""


async def probe_jail(kernel: JailedKernel) -> str | None:
    """The first thing that does not hold of a fresh jail, or None. The kernel is of no further use."""
    return _probe_process(kernel) or await _probe_files(kernel) or await _probe_inside(kernel)


def _probe_process(kernel: JailedKernel) -> str | None:
    lines = Path(f"/proc/{kernel.pid}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    if "0" in status["Uid"] + status["Gid"]:
        return "it runs as root on the host"
    return next((problem for problem, (name, value) in STATUS.items() if status[name] != [value]), None)


async def _probe_files(kernel: JailedKernel) -> str | None:
    with tempfile.NamedTemporaryFile() as file:
        os.fchmod(file.fileno(), 0o644)
        outcome = await kernel.run_cell(f"import os; os.path.exists({file.name!r})", timeout_s=PROBE_TIMEOUT_S)
    return None if outcome.result == "False" else "a file of the host is visible"


async def _probe_inside(kernel: JailedKernel) -> str | None:
    await kernel.run_cell(_REFUSED, timeout_s=PROBE_TIMEOUT_S)
    for problem, holds in INSIDE.items():
        outcome = await kernel.run_cell(holds, timeout_s=PROBE_TIMEOUT_S)
        if outcome.result != "True":
            return problem
    return None

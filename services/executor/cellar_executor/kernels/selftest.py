"""Is a jail one? Checks made from outside on the process itself, then attempts made from inside."""

import os
import re
import tempfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from cellar_executor.kernels.hierarchy import TREE_PREFIX
from cellar_executor.kernels.jail import NAMESPACES
from cellar_executor.kernels.jailed_kernel import JailedKernel

PROBE_TIMEOUT_S = 10.0
IN_OWN_GROUP = re.compile(rf"/{TREE_PREFIX}[0-9a-f-]+/[0-9a-f]{{12}}$", re.MULTILINE)

_REFUSED = """
def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False

import glob, os, socket
"""
INSIDE = {
    "the network is reachable": "refused(socket.socket)",
    "/proc is visible": "not os.path.exists('/proc/self')",
    "the host's /etc is visible": "{*os.listdir('/etc')} <= {'ld.so.cache', 'passwd'}",
    "the system's libraries are writable": "refused(lambda: open('/usr/lib/cellar', 'w'))",
    "the kernel's own code is writable": "all(refused(lambda: open(path, 'a')) for path in glob.glob('/cellar/*'))",
    "the kernel's own code can be replaced": "refused(lambda: open('/cellar/new.py', 'w'))",
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


async def probe_jail(kernel: JailedKernel, *, grouped: bool) -> str | None:
    """The first thing that does not hold of a fresh jail, or None. The kernel is of no further use.

    `grouped`: whether it ought to be in a control group of its own.
    """
    return _probe_process(kernel, grouped) or await _probe_files(kernel) or await _probe_inside(kernel)


def _probe_process(kernel: JailedKernel, grouped: bool) -> str | None:
    process = Path(f"/proc/{kernel.pid}")
    lines = (process / "status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    (parent,) = status["PPid"]  # nsjail, or the zygote
    for name, (whose, pid) in product(NAMESPACES, {"the host": "self", "its parent": parent}.items()):
        if os.readlink(process / "ns" / name) == os.readlink(f"/proc/{pid}/ns/{name}"):
            return f"it shares a namespace with {whose} ({name})"
    groups = (process / "cgroup").read_text()
    if grouped and not IN_OWN_GROUP.search(groups):
        return "it is in no control group of its own"
    return _probe_status(status)


def _probe_status(status: Mapping[str, list[str]]) -> str | None:
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

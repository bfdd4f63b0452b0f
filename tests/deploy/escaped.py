"""What an attacker could do in the executor's container who broke out of a jail, and so has the server's own user.

Runs in there, with the standard library alone, and prints JSON: what was tried -> "DONE", an error's name, or a fact.
"""

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
SYSTEM_CALLS = {"keyring": 250, "io_uring": 425, "user-fault": 323, "performance-counters": 298, "load-module": 175}
"""Of x86_64, called with nothing but zeros: one that is allowed says that these make no sense."""
VIRTUAL = {"overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}
OF_EVERY_CONTAINER = {
    "/",
    "/etc/resolv.conf",
    "/etc/hostname",
    "/etc/hosts",
    "/usr/sbin/docker-init",
    "/sbin/docker-init",
}
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    json.dump({name: attempt(action) for name, action in ATTEMPTS.items()}, sys.stdout)


def attempt(action: Callable[[], Any]) -> Any:
    try:
        answer = action()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, type(exc).__name__)
    return "DONE" if answer is None else answer


def write(path: str) -> None:
    with open(path, "w") as file:
        file.write("0")


def read(path: str) -> None:
    with open(path, "rb") as file:
        if not file.read(1):
            raise OSError(errno.ENOENT, "empty")  # as the engine masks files


def call(function: Any, *arguments: Any) -> None:
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def mount() -> None:
    call(_libc.mount, b"tmpfs", b"/mnt", b"tmpfs", 0, None)


def in_a_child(action: Callable[[], None]) -> Any:
    """For what would change this process."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, str(attempt(action)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        return answer.read()


def mount_in_a_namespace() -> None:
    call(_libc.unshare, CLONE_NEWUSER | CLONE_NEWNS)
    mount()


def become_root() -> None:
    os.setuid(0)


def user_of_a_set_user_id_program() -> str:
    """`su` waits for a password; whose is it meanwhile?"""
    with subprocess.Popen(["su"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as su:
        time.sleep(0.2)
        effective = status("Uid", su.pid).split()[1]
        su.kill()
    return "root" if effective == "0" else "the same"


def status(field: str, pid: int | str = "self") -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":\t")[1] for line in lines if line.startswith(f"{field}:"))


def binds_of_the_host() -> list[str]:
    """Mounts of real file systems, but for those that every container has."""
    mounts = [line.partition(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted(
        {left.split()[4] for left, _, right in mounts if right.split()[0] not in VIRTUAL} - OF_EVERY_CONTAINER
    )


ATTEMPTS: dict[str, Callable[[], Any]] = {
    "write to the root": lambda: write("/var/tmp/x"),
    "write to the server's code": lambda: write("/opt/cellar/x"),
    "keep a file in /tmp": lambda: write("/tmp/x"),
    "files of the host": binds_of_the_host,
    "the engine's socket": lambda: read("/var/run/docker.sock"),
    "become root": lambda: in_a_child(become_root),
    "capabilities": lambda: status("CapEff"),
    "capabilities to be had": lambda: status("CapBnd"),
    "user of a set-user-id program": user_of_a_set_user_id_program,
    "mount": mount,
    "mount in a user namespace": lambda: in_a_child(mount_in_a_namespace),
    "make a device": lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0)),
    "raw packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "write /proc/sys": lambda: write("/proc/sys/kernel/core_pattern"),
    "write /sys": lambda: write("/sys/kernel/mm/ksm/run"),
    "read the kernel's memory": lambda: read("/proc/kcore"),
    "the server's environment": lambda: read("/proc/1/environ"),
    "processes of the host": lambda: sum(entry.isdigit() for entry in os.listdir("/proc")) > 100,
    **{name: partial(call, _libc.syscall, number, 0, 0, 0, 0, 0) for name, number in SYSTEM_CALLS.items()},
}

if __name__ == "__main__":
    main()

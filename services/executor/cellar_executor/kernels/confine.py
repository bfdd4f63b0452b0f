"""How a clone of a zygote becomes the jail of one session, from inside: a function for each wall.

Runs with the Python of the cells: standard library only. What ctypes needs is made at import, before any fork.
A step that fails raises `OSError`; the clone then ends without having run anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import struct
import sys
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

CONTROL_FD = 3
MAX_CONFIGURATION_BYTES = 64 << 10
MAX_FDS = 16
"""With the configuration."""
CELL_ID = 1000
HOSTNAME = b"cellar"
STACK_MB = 8
SCRATCH, SHARED_MEMORY = "/tmp", "/dev/shm"

CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SESSION_NAMESPACES = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
"""All but the pid namespace, which a process can only be born into."""
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x1000, 0x4000, 0x40000
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 4, 22, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION = 0x20080522


class FilterProgram(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)
_prctl, _unshare, _setns, _mount, _capset, _sethostname = (
    getattr(_libc, name) for name in ("prctl", "unshare", "setns", "mount", "capset", "sethostname")
)
_prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_capset.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
_sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_THIS_PROCESS = struct.pack("=Ii", CAPABILITY_VERSION, 0)
_NO_CAPABILITY = bytes(24)


# --- descriptors --------------------------------------------------------------------------------


def keep_only(control: int) -> None:
    """`control` becomes fd 3, 0 to 2 lead nowhere, and the rest is closed."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    os.dup2(control, CONTROL_FD)
    os.closerange(CONTROL_FD + 1, os.sysconf("SC_OPEN_MAX"))


def receive_configuration() -> dict[str, Any]:
    """The supervisor's first and only word before the walls stand.

    Its fds: two become stdout and stderr, the others are files by which to join control groups, at once.
    """
    control = socket.socket(fileno=CONTROL_FD)
    fds = array("i")
    size = fds.itemsize * MAX_FDS
    header, ancillary, _, _ = control.recvmsg(4, socket.CMSG_LEN(size), socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL)
    for _, _, content in ancillary:
        fds.frombytes(content)
    if len(header) < 4 or len(fds) < 2:
        raise ConnectionError("no configuration came")
    for fd in fds[2:]:
        os.write(fd, b"0")
        os.close(fd)
    (length,) = struct.unpack("!I", header)
    if length > MAX_CONFIGURATION_BYTES:
        raise ConnectionError(f"a configuration of {length} bytes")
    configuration: dict[str, Any] = json.loads(control.recv(length, socket.MSG_WAITALL))
    control.detach()
    for name, number, fd in zip(("stdout", "stderr"), (1, 2), fds[:2], strict=True):
        os.dup2(fd, number)
        os.close(fd)
        # A new stream: the zygote's is set up for whatever kind of file lay behind its descriptor.
        stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return configuration


def report_failure(text: str) -> None:
    payload = json.dumps({"failed": text}).encode()
    with contextlib.suppress(OSError):  # the supervisor may have gone first
        os.write(CONTROL_FD, struct.pack("!I", len(payload)) + payload)


# --- identity and namespaces --------------------------------------------------------------------


def unshare(flags: int) -> None:
    _checked("unshare", _unshare(flags))


def enter_pid_namespace(fd: int) -> None:
    """For the children to come: a process itself stays where it was born."""
    _checked("setns", _setns(fd, CLONE_NEWPID))


def become(number: int) -> None:
    """The user and group `number` of the zygote's range, whom no other session is."""
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
    _checked("dumpable", _prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))  # else /proc/self, with the maps to write, is root's


def enter_namespaces() -> None:
    user, group = os.getuid(), os.getgid()
    unshare(SESSION_NAMESPACES)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{CELL_ID} {user} 1")
    _write("/proc/self/gid_map", f"{CELL_ID} {group} 1")
    _checked("sethostname", _sethostname(HOSTNAME, len(HOSTNAME)))


def start_session(niceness: int) -> None:
    """No terminal, process group or signal handling of the zygote's."""
    os.setsid()
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


# --- files --------------------------------------------------------------------------------------


def mount_points_below(folders: Sequence[str], table: str = "/proc/self/mountinfo") -> list[str]:
    """The outermost mounts inside `folders`, such as a runtime's below /tmp."""
    with open(table) as lines:
        points = sorted(line.split()[4].encode().decode("unicode_escape") for line in lines)
    found: list[str] = []
    for point in points:
        inside = any(is_below(point, folder) for folder in folders)
        if inside and not any(is_below(point, outer) for outer in found):
            found.append(point)
    return found


def is_below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")


def mount_folders(workdir: str, configuration: dict[str, Any], kept: Iterable[str]) -> None:
    """Folders of the session's own over the zygote's, in which `kept` mounts stay visible; and nothing in /proc."""
    _do_mount(None, "/", None, MS_REC | MS_PRIVATE)
    for folder, quota, mode in (
        (workdir, "disk_mb", "0700"),
        (SCRATCH, "scratch_mb", "1777"),
        (SHARED_MEMORY, "shared_memory_mb", "1777"),
    ):
        size_mb = configuration[quota]
        options = f"size={size_mb}m,nr_inodes={size_mb * configuration['inodes_per_mb']},mode={mode}"
        _cover(folder, options, [point for point in kept if is_below(point, folder)])
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    _do_mount("proc", "/proc", "tmpfs", flags, "size=4k,nr_inodes=1,mode=0555")
    os.chdir(workdir)


def _cover(folder: str, options: str, kept: Sequence[str]) -> None:
    sources = {point: os.open(point, os.O_PATH) for point in kept}
    _do_mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
    for point, source in sources.items():
        reached = f"/proc/self/fd/{source}"
        if os.path.isdir(reached):
            os.makedirs(point)
        else:
            os.makedirs(os.path.dirname(point), exist_ok=True)
            os.close(os.open(point, os.O_CREAT | os.O_EXCL, 0o600))
        _do_mount(reached, point, None, MS_BIND | MS_REC)
        os.close(source)


# --- limits and privileges ----------------------------------------------------------------------


def data_bytes() -> int:
    """What RLIMIT_DATA counts of this process, and its stack, which is little beside it."""
    with open("/proc/self/statm", "rb", buffering=0) as numbers:
        return int(numbers.read().split()[5]) * resource.getpagesize()


def set_limits(configuration: dict[str, Any], inherited_bytes: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_DATA, inherited_bytes + configuration["data_bytes"]),
        (resource.RLIMIT_FSIZE, configuration["disk_mb"] << 20),
        (resource.RLIMIT_NOFILE, configuration["open_files"]),
        (resource.RLIMIT_NPROC, configuration["processes"]),
        (resource.RLIMIT_STACK, STACK_MB << 20),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def drop_capabilities() -> None:
    """For good: those in force, those to inherit, and the bounding set that an exec could draw from."""
    capability = 0
    while _prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if ctypes.get_errno() != errno.EINVAL or capability == 0:  # EINVAL: one past the last
        _checked("bounding set", -1)
    _checked("ambient set", _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _checked("capset", _capset(_THIS_PROCESS, _NO_CAPABILITY))


def forbid_new_privileges() -> None:
    _checked("no_new_privs", _prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def filter_program(instructions: bytes) -> FilterProgram:
    """To make before the fork."""
    return FilterProgram(len(instructions) // 8, instructions)


def filter_system_calls(program: FilterProgram) -> None:
    _checked("seccomp", _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0))


# --- helpers ------------------------------------------------------------------------------------


def _do_mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, options)]
    _checked(f"mount {target}", _mount(words[0], words[1], words[2], flags, words[3]))


def _checked(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)

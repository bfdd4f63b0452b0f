"""The zygote: runs inside a jail of its own, with libraries loaded and warmed, and forks one clone per session.

Started as `python -P -s -B zygote_main.py OPTIONS` by nsjail, as process 1, a control socket (SOCK_SEQPACKET) on fd 3.
It says `R` when it is warm. A request is `F` with one fd, the session's control socket; the answer is `F` with the
clone's pidfd, or `E` and why not. It learns nothing else of any session, because all that it knows every later one
would find in its memory: the clone reads its limits from its own socket. Standard library only.
"""

from __future__ import annotations

import base64
import fcntl
import gc
import json
import os
import signal
import socket
import sys
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, NoReturn

if TYPE_CHECKING or __package__:
    from cellar_executor.kernels import confine, kernel_main, warmup
else:

    def beside(name: str) -> ModuleType:
        """Not by import path and not among `sys.modules`: a cell's own module may have that name."""
        from importlib.util import module_from_spec, spec_from_file_location

        spec = spec_from_file_location(name, os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py"))
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    confine, kernel_main, warmup = map(beside, ("confine", "kernel_main", "warmup"))

CONTROL_FD = 3
FORK, READY, REFUSED = b"F", b"R", b"E"
STANDARD_FDS = (0, 1, 2)
KERNEL_IMPORTS = ("random",)
"""What the kernel itself would load late."""


def main() -> NoReturn:
    options = json.loads(sys.argv[1])
    sys.argv = [""]
    os.chdir("/")
    os.environ.clear()
    os.environ.update(options["environment"])
    jail = Jail(options)
    warmup.warm((*KERNEL_IMPORTS, *options["preimports"]))
    for part in ("kernel_files", "kernel_seed"):
        kernel_main.beside(part)
    zygote = Zygote(options["uids"])
    settle()
    control, number = zygote.serve()
    jail.enter(control, number)
    kernel_main.run(options["workdir"], None)


def settle() -> None:
    """What is here now stays: no collection moves it, and the clones share its pages."""
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    gc.disable()
    gc.freeze()
    warmup.collapse()


class Refused(Exception):
    """A request cannot be met; the text is for the supervisor."""


class Zygote:
    """Meets requests, one after another. `numbers`: how many clones may have a uid of their own; 0: all have ours."""

    def __init__(self, numbers: int) -> None:
        if os.getpid() != 1:
            raise SystemExit("a zygote must be process 1 of its pid namespace: its sessions end with it")
        self._numbers = numbers
        self._cloned = 0
        self._control = socket.socket(fileno=CONTROL_FD)
        self._control.set_inheritable(False)
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self._request = bytearray(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a dead clone is no zombie: its end is its pidfd's

    def serve(self) -> tuple[int, int]:
        """Returns in each clone, with its control socket and its number; in the zygote it ends with the supervisor."""
        self._check()
        self._control.send(READY)
        while True:
            session = self._receive()
            try:
                number = self._next_number()
                self._check(session)
                pidfd = self._clone()
            except (Refused, OSError) as exc:
                self._control.send(REFUSED + str(exc).encode())
            else:
                if pidfd is None:
                    return session, number
                socket.send_fds(self._control, [FORK], [pidfd])
                os.close(pidfd)
            os.close(session)

    def _receive(self) -> int:
        """The fd of the next request. One byte is read into the same place every time: nothing is kept."""
        fds = array("i")
        space = socket.CMSG_LEN(fds.itemsize)
        size, ancillary, flags, _ = self._control.recvmsg_into([self._request], space, socket.MSG_CMSG_CLOEXEC)
        if size == 0:
            os._exit(0)
        for _, _, content in ancillary:
            fds.frombytes(content)
        if self._request != FORK or len(fds) != 1 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise SystemExit("not a request")
        return fds[0]

    def _next_number(self) -> int:
        if self._numbers == 0:
            return 0
        if self._cloned == self._numbers:
            raise Refused("all its uids are used up")
        return self._cloned + 1

    def _check(self, *expected: int) -> None:
        """A clone inherits what is open, and a second thread's locks."""
        if len(os.listdir("/proc/self/task")) != 1:
            raise Refused("it has more than one thread")
        known = {*STANDARD_FDS, CONTROL_FD, self._pid_namespace, *expected}
        if any(is_open(fd) for fd in map(int, os.listdir("/proc/self/fd")) if fd not in known):
            raise Refused("it has a descriptor that is not its own")

    def _clone(self) -> int | None:
        """The clone's pidfd; None in the clone, which waits for its configuration and so lives."""
        pid = self._fork()
        if pid == 0:
            return None
        self._cloned += 1
        return os.pidfd_open(pid)

    def _fork(self) -> int:
        """The child is process 1 of a new pid namespace."""
        confine.unshare(confine.CLONE_NEWPID)
        pid = -1
        try:
            pid = os.fork()
            return pid
        finally:
            if pid != 0:
                confine.enter_pid_namespace(self._pid_namespace)


def is_open(fd: int) -> bool:
    """Listing a folder takes an fd itself, which is gone by now."""
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


class Jail:
    """The walls of a session, all that can be known of them before it exists."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._workdir: str = options["workdir"]
        self._program = confine.filter_program(base64.b64decode(options["seccomp"]))
        self._kept = confine.mount_points_below((self._workdir, confine.SCRATCH, confine.SHARED_MEMORY))

    def enter(self, control: int, number: int) -> None:
        """In a clone, which ends here if a single wall does not stand."""
        try:
            confine.keep_only(control)
            self._confine(confine.receive_configuration(), number)
            warmup.forget()
            kernel_main.reseed(None)
            gc.enable()
        except BaseException as exc:
            confine.report_failure(f"{type(exc).__name__} in {innermost(exc)}: {exc}")
            os._exit(1)

    def _confine(self, configuration: dict[str, Any], number: int) -> None:
        if number:
            confine.become(number)
        confine.enter_namespaces()
        confine.start_session(configuration["niceness"])
        inherited_bytes = confine.data_bytes()
        confine.mount_folders(self._workdir, configuration, self._kept)
        confine.set_limits(configuration, inherited_bytes)
        confine.drop_capabilities()
        confine.forbid_new_privileges()
        confine.filter_system_calls(self._program)


def innermost(exc: BaseException) -> str:
    """The function that raised."""
    trace = exc.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_name if trace else "nowhere"


if __name__ == "__main__":
    main()

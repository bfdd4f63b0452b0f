"""The spawner: a small process beside the server that starts the jails.

Why not the server itself: a jail has to die with the one who started it (PR_SET_PDEATHSIG), which takes code between
fork and exec, and the server has threads, where that may deadlock; staging takes a mount namespace, which a process
with threads cannot change for all of them; and a fork of the server would copy its page tables for every session.
This process has one thread, no secret and no listener. It trusts the server, and nothing of a jail ever reaches it.

Run as `python -I -m cellar_executor.kernels.spawner SOCKET FENCE TREES`; one request per datagram on that socket, see
`SpawnRequest`. When the server dies the socket closes, this process ends, and so do all jails. When the server is
alive and may not have them any more, the fence ends it (`fence`).
"""

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from cellar_executor.kernels.fence import Deadline
from cellar_executor.kernels.staging import stage

MAX_DATAGRAM = 64 << 10
PASSED_FDS = 5
"""stdout, stderr, control, configuration, log: 1 to 5 in the child; 0 is /dev/null."""
PR_SET_PDEATHSIG = 1
DECIDED_BY_THE_SERVER = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C and whoever stops a process group send these to all of it, but what runs may end first."""
OOM_SCORE = 500
"""When the whole host runs out of memory, cells go before the server."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    number: int
    """Comes back with the answer."""
    argv: list[str]
    environment: dict[str, str]
    workdir: str
    join_files: list[str]
    """To join cgroups by, before the exec."""
    data_bytes: int | None
    """RLIMIT_DATA, if there is to be one."""

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def main() -> None:
    server = socket.socket(fileno=int(sys.argv[1]))
    server.set_inheritable(False)
    deadline = Deadline(*json.loads(sys.argv[2]))
    trees = [Path(tree) for tree in json.loads(sys.argv[3])]
    try:
        if trees:
            stage(trees)
    except OSError as exc:
        server.send(json.dumps({"problem": exc.strerror}).encode())
        return
    server.send(json.dumps({"problem": None}).encode())
    serve(server, deadline)


def serve(server: socket.socket, deadline: Deadline) -> None:
    for number in DECIDED_BY_THE_SERVER:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, reap)
    heard = select.poll()
    heard.register(server, select.POLLIN)
    heard.register(deadline.changes, select.POLLIN)
    while True:
        ready = {fd for fd, _ in heard.poll()}
        if deadline.changes in ready:
            deadline.heed()
        if server.fileno() in ready and not answer(server):
            return


def answer(server: socket.socket) -> bool:
    """The next request; False when the server is gone."""
    message, fds, _, _ = socket.recv_fds(server, MAX_DATAGRAM, PASSED_FDS)
    if not message:
        return False
    request = SpawnRequest(**json.loads(message))
    try:
        pidfd = spawn(request, fds)
    except OSError as exc:
        server.send(json.dumps({"number": request.number, "problem": exc.strerror}).encode())
    else:
        socket.send_fds(server, [json.dumps({"number": request.number, "problem": None}).encode()], [pidfd])
        os.close(pidfd)
    for fd in fds:
        os.close(fd)
    return True


def reap(signum: int, frame: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def spawn(request: SpawnRequest, fds: list[int]) -> int:
    """Start a process; its pidfd, taken before it can be reaped and its number be another's."""
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        pid = os.fork()
        if pid == 0:
            become(request, fds, parent)
        return os.pidfd_open(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def become(request: SpawnRequest, fds: list[int], parent: int) -> None:
    """In the child: never returns. What goes wrong is written where nsjail's log goes."""
    log = fds[-1]
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before it could be watched
        for path in request.join_files:
            write_file(path, "0")
        write_file("/proc/self/oom_score_adj", str(OOM_SCORE))
        if request.data_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (request.data_bytes, request.data_bytes))
        arrange_fds(fds)
        os.setsid()
        os.chdir(request.workdir)
        for number in (*DECIDED_BY_THE_SERVER, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execve(request.argv[0], request.argv, request.environment)
    except BaseException as exc:
        os.write(log, f"{type(exc).__name__}: {exc}".encode())
    finally:
        os._exit(127)


def write_file(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, text.encode())
    os.close(fd)


def arrange_fds(fds: list[int]) -> None:
    """/dev/null and `fds` as 0 to 5, and nothing else (all others close on exec)."""
    sources = [os.open(os.devnull, os.O_RDONLY), *fds]
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(sources)) for fd in sources]
    for number, fd in enumerate(above):
        os.dup2(fd, number)


if __name__ == "__main__":
    main()

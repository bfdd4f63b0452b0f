"""The server's own Redis, when no URL is given: a redis-server child on a unix socket, its file in the data folder.

Two locks in the data folder keep its state from being written twice. `server.lock` is held by this process alone: where
it is taken, another server lives. `redis.lock` is also held by the redis-server child: after a server was killed its
Redis may take a moment to write its last lines and go, and only then may the next one start.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
SOCKET = "socket"
"""In the data folder: a link to where the socket is."""
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02


class RedisError(Exception):
    """The data folder is in use, or redis-server does not start; the message says which."""


class RedisServer:
    """A redis-server child; `ensure_running` starts it again when it died."""

    def __init__(self, binary: Path, data_dir: Path, socket_dir: Path, lock_fd: int) -> None:
        self._binary = binary
        self._data_dir = data_dir
        self._socket = socket_dir / "redis.sock"
        self._lock_fd = lock_fd
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def ensure_running(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [self._binary, *self._options()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            pass_fds=[self._lock_fd],
            preexec_fn=_die_with(os.getpid()),
            start_new_session=True,  # a Ctrl-C at the terminal is for the server, which stops Redis last
        )

    def wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(self._socket):
            if self._process.poll() is not None:
                raise RedisError(f"redis-server does not start; see {self._data_dir / 'redis.log'}")
            if time.monotonic() > deadline:
                raise RedisError(f"redis-server is not ready after {START_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._data_dir),
            "logfile": str(self._data_dir / "redis.log"),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]


@contextlib.contextmanager
def redis_server(binary: Path, data_dir: Path) -> Iterator[RedisServer]:
    """A running Redis over the data folder, which is this server's alone meanwhile. Raises `RedisError`."""
    redis_dir = data_dir / "redis"
    redis_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    still_going = "the Redis of an earlier server still writes to this data folder"
    with (
        _locked(data_dir / "server.lock", "another server uses this data folder"),
        _locked(data_dir / "redis.lock", still_going, wait_s=START_TIMEOUT_S) as lock_fd,
        _socket_dir(data_dir / SOCKET) as socket_dir,
    ):
        server = RedisServer(binary, redis_dir.absolute(), socket_dir, lock_fd)
        server.ensure_running()
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()


def running_redis(data_dir: Path) -> str | None:
    """URL of the Redis that another process has running over the data folder, if one has."""
    try:
        path = (data_dir / SOCKET).readlink() / "redis.sock"
    except OSError:
        return None
    return f"unix://{path}" if _answers(path) else None


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False


@contextlib.contextmanager
def _locked(path: Path, complaint: str, wait_s: float = 0.0) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RedisError(f"{complaint}: {path.parent}") from None
                time.sleep(POLL_S)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _socket_dir(pointer: Path) -> Iterator[Path]:
    """A short path for the socket, wherever the data folder is; by `pointer` the next start finds a crash's litter."""
    if pointer.is_symlink():
        shutil.rmtree(pointer.readlink(), ignore_errors=True)
        pointer.unlink()
    with tempfile.TemporaryDirectory(prefix="cellar-redis-") as folder:
        pointer.symlink_to(folder)
        try:
            yield Path(folder)
        finally:
            pointer.unlink()


def _die_with(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child

"""Executor replicas and one Redis on this machine, all real processes, with a proxy wherever two of them speak.

Clients reach replica i at `cluster.replicas[i].url`, which is that of its `front` proxy and stays the same over its
starts; the other replicas reach it there too. A replica reaches Redis through `to_redis`, also a proxy. Redis listens
somewhere else after each start and writes to the same append-only file.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import redis

from tests.executor_process import ExecutorProcess
from tests.faults import processes
from tests.faults.processes import Process
from tests.faults.proxy import Proxy

REDIS_SERVER = Path(sys.executable).parent / "redis-server"
SERVER = Path(__file__).parent / "server.py"
LEASE_S = 2.0
GONE_WITHIN_S = 5.0
"""Nothing of a killed server is left after so long (I9)."""
START_TIMEOUT_S = 30.0
CONNECTIONS = 40
"""Of clients, replicas and Redis, which a server may keep open for a while."""
FULL_BYTES = 1 << 20
"""Less than an empty Redis uses."""


class RedisProcess:
    """A Redis that keeps what it acknowledges, unless `durable` is False."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._durable = durable
        self.address = ("127.0.0.1", 0)
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        self.address = ("127.0.0.1", _free_port())
        options = {
            "port": str(self.address[1]),
            "bind": self.address[0],
            "dir": str(self._folder),
            "logfile": str(self._folder / "redis.log"),
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen([str(REDIS_SERVER), *arguments], start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Redis did not start; see {self._folder / 'redis.log'}")
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def fill(self) -> None:
        """Every write is refused from now on."""
        self._config(FULL_BYTES)

    def empty(self) -> None:
        self._config(0)

    def _config(self, maxmemory: int) -> None:
        with redis.Redis(*self.address) as client:
            client.config_set("maxmemory", maxmemory)

    def _answers(self) -> bool:
        try:
            with redis.Redis(*self.address) as client:
                return bool(client.ping())
        except redis.RedisError:  # not yet, or still reading its file
            return False


class Replica:
    """One place in the cluster: a server may run here, be killed, and another one be started."""

    def __init__(self, number: int, server: ExecutorProcess, front: Proxy, to_redis: Proxy) -> None:
        self.number = number
        self.server = server
        self.front = front
        self.to_redis = to_redis
        self.url = f"http://127.0.0.1:{front.port}"
        self.running = False

    def start(self) -> None:
        self.server.start()
        address = urlsplit(self.server.url)
        assert address.port is not None
        self.front.target = ("127.0.0.1", address.port)
        self.running = True

    def kill(self) -> set[Process]:
        """SIGKILL. What is left of it after `GONE_WITHIN_S`, which should be nothing."""
        self.running = False
        tree = processes.below(self.server.process.pid)
        self.server.kill()
        left = processes.survivors(tree, GONE_WITHIN_S)
        processes.bury(tree)
        return left

    def used(self) -> tuple[int, int]:
        """Processes below the server, and its open files."""
        pid = self.server.process.pid
        return len(processes.below(pid)), processes.open_files(pid)

    def died(self) -> bool:
        """Whether the server has ended by itself."""
        return self.server.process.poll() is not None

    def stop(self) -> None:
        """SIGTERM, and wait for the orderly end."""
        self.server.stop()
        self.running = False


class Cluster:
    """`with Cluster(folder) as cluster`: all up on enter, nothing left on exit.

    Args:
        env: of all servers; see `tests.faults.server` for what it understands there beyond the executor's own.
        isolated: kernels in jails; else cells may write to the host's files, and so tell what truly happened.
        durable: False makes a Redis that forgets, for a mutant.
    """

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        *flags: str,
        env: Mapping[str, str] | None = None,
        isolated: bool = False,
        durable: bool = True,
    ) -> None:
        self._folder = folder
        self._count = count
        self._flags = (
            f"--lease-s={LEASE_S}",
            "--ready-sessions=0",
            "--zygotes=1",
            "--drain-timeout-s=10",
            *(() if isolated else ("--insecure-no-isolation",)),
            *(() if durable else ("--durability=off",)),
            *flags,
        )
        self._env = {"CELLAR_EXECUTOR_PREIMPORT": "python=", **(env or {})}
        self.redis = RedisProcess(folder / "redis", durable=durable)
        self.replicas: list[Replica] = []
        self.kills = 0
        self._at_rest: tuple[int, int] = (0, 0)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        processes.adopt_orphans()
        with contextlib.ExitStack() as opened:
            self.redis.start()
            opened.callback(self._stop_redis)
            for number in range(self._count):
                self.replicas.append(self._place(number, opened))
            for replica in self.replicas:
                replica.to_redis.target = self.redis.address
                replica.start()
            used = [replica.used() for replica in self.replicas]
            self._at_rest = (max(count for count, _ in used), max(files for _, files in used))
            self._open = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.replicas]

    def folder(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def restart_redis(self, down_s: float = 0.0) -> None:
        """kill -9, a pause, and up again on the same file."""
        self.redis.kill()
        self.kills += 1
        time.sleep(down_s)
        self.redis.start()
        for replica in self.replicas:
            replica.to_redis.target = self.redis.address

    def kill(self, replica: Replica) -> set[Process]:
        self.kills += 1
        return replica.kill()

    def heal(self) -> None:
        """All up, and every wire whole."""
        if self.redis.process.poll() is not None:
            self.redis.start()
        self.redis.resume()
        self.redis.empty()
        for replica in self.replicas:
            replica.to_redis.target = self.redis.address
            replica.to_redis.heal()
            replica.front.heal()
            if replica.running and not replica.died():
                replica.server.resume()
            else:
                replica.start()

    def excess(self) -> list[str]:
        """What servers without a session hold, beyond what they began with, after `GONE_WITHIN_S` (I9)."""
        deadline = time.monotonic() + GONE_WITHIN_S
        most, most_files = self._at_rest
        while True:
            used = [replica.used() for replica in self.replicas]
            found = [
                f"replica {number} holds {count} processes and {files} files, {most} and {most_files} at first"
                for number, (count, files) in enumerate(used)
                if count > most or files > most_files + CONNECTIONS
            ]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def _place(self, number: int, opened: contextlib.ExitStack) -> Replica:
        front, to_redis = opened.enter_context(Proxy()), opened.enter_context(Proxy())
        server = ExecutorProcess(
            self._folder / f"replica-{number}",
            *self._flags,
            f"--redis-url=redis://127.0.0.1:{to_redis.port}",
            f"--advertise-url=http://127.0.0.1:{front.port}",
            env=self._env,
            command=(sys.executable, str(SERVER)),
        )
        replica = Replica(number, server, front, to_redis)
        opened.callback(self._end, replica)
        return replica

    @staticmethod
    def _end(replica: Replica) -> None:
        if replica.running:
            replica.kill()

    def _stop_redis(self) -> None:
        if self.redis.process.poll() is None:
            self.redis.kill()


@contextlib.contextmanager
def nothing_left() -> Iterator[set[Process]]:
    """At the end the set has the processes that began meanwhile and live on after `GONE_WITHIN_S` (I9)."""
    before, left = processes.below(os.getpid()), set[Process]()
    yield left
    left |= processes.survivors(processes.below(os.getpid()) - before, GONE_WITHIN_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

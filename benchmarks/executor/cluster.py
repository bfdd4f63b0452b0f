"""Several servers on one Redis, started for a benchmark, and what they and that Redis have used so far."""

import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.executor.cellar import CellarSide
from benchmarks.executor.system import cpu_seconds, descendants
from cellar_executor.redis_server import redis_server
from tests.executor_process import COMMAND, ExecutorProcess

REDIS_SERVER = COMMAND.with_name("redis-server")


@dataclass(frozen=True)
class Cluster:
    folder: Path
    redis_url: str
    servers: Sequence[ExecutorProcess]
    sides: Sequence[CellarSide]

    def redis(self, command: str) -> str:
        """Redis's answer to a plain command. Raises `RuntimeError` for an error."""
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as answer:
            connection.connect(self.redis_url.removeprefix("unix://"))
            connection.sendall(f"{command}\r\n".encode())
            head = answer.readline().decode().rstrip()
            if head.startswith("-"):
                raise RuntimeError(f"{command}: {head}")
            return answer.read(int(head[1:])).decode() if head.startswith("$") else head

    def redis_info(self, field: str) -> int:
        lines = (line.partition(":") for line in self.redis("INFO").splitlines())
        return int(next(value for name, _, value in lines if name == field))

    def cpu_seconds(self) -> float:
        """Of all servers, what runs below them, and Redis."""
        roots = [*(server.process.pid for server in self.servers), self.redis_info("process_id")]
        return sum(cpu_seconds(pid) for root in roots for pid in descendants(root))


@contextmanager
def cluster(count: int, *flags: str) -> Iterator[Cluster]:
    """`count` servers with these flags, and a Redis that flushes every write."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        redis = stack.enter_context(redis_server(REDIS_SERVER, Path(folder, "redis")))
        names = [f"server-{number}" for number in range(count)]
        servers = [ExecutorProcess(Path(folder, name), "--redis-url", redis.url, *flags) for name in names]
        with ThreadPoolExecutor(count) as starters:
            list(starters.map(stack.enter_context, servers))
        sides = [
            CellarSide(name, server.url, server.process.pid, isolation=None)
            for name, server in zip(names, servers, strict=True)
        ]
        yield Cluster(Path(folder), redis.url, servers, sides)

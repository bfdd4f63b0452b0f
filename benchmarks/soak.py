"""Many sessions in a row, and what they leave behind.

    make soak       or: .venv/bin/python -m benchmarks.soak [--sessions 20000] [--clients 4] [--isolation warm|strict]

Each is created, runs a cell and is deleted. Printed are the server and all below it before and after, and by how much
each figure grew per 1000 sessions (a straight line through what was seen on the way; the first tenth warms up).
"""

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from pathlib import Path

import redis

from benchmarks.executor.cellar import CellarSide
from benchmarks.executor.system import command, descendants, machine, pss_bytes
from tests.executor_process import ExecutorProcess

SETTLE_S = 5.0
CHECKS = 20
CELL = "import numpy, sympy; print(numpy.arange(10).sum())"

Seen = dict[str, float]


def main() -> None:
    arguments = parse()
    flags = [f"--isolation={arguments.isolation}"] if arguments.isolation else []
    with tempfile.TemporaryDirectory() as data_dir, ExecutorProcess(Path(data_dir), *flags) as server:
        side = CellarSide("cellar", server.url, server.process.pid, isolation=None)
        print(machine(side.described()), flush=True)
        seen, failures, seconds = soak(side, arguments.sessions, arguments.clients)
    print(f"{arguments.sessions} sessions in {seconds:.0f} s, {len(failures)} failed\n")
    print(table(seen))
    for failure in failures[:10]:
        print(f"* {failure}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--isolation", choices=["warm", "strict"], help="tier of the server; its default when left out")
    return parser.parse_args()


def soak(side: CellarSide, count: int, clients: int) -> tuple[dict[int, Seen], list[str], float]:
    """What was seen by the number of sessions before, what failed, and how long the sessions took."""
    failures: list[str] = []

    def one(_: int) -> None:
        try:
            session = side.open()
            session.run(CELL)
            session.close()
        except Exception as error:
            failures.append(f"{type(error).__name__}: {str(error)[:300]}")

    done, seconds = 0, 0.0
    time.sleep(SETTLE_S)
    seen = {0: look(side.server_pid)}
    with ThreadPoolExecutor(clients) as pool:
        for part in batched(range(count), -(-count // CHECKS)):
            start = time.perf_counter()
            list(pool.map(one, part))
            seconds += time.perf_counter() - start
            done += len(part)
            time.sleep(SETTLE_S if done == count else SETTLE_S / 5)
            seen[done] = look(side.server_pid)
            print(f"\r{done}/{count}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seen, failures, seconds


def look(server: int) -> Seen:
    pids = descendants(server)
    stores = [pid for pid in pids if command(pid) == "redis-server"]
    return {
        "processes below the server": len(pids) - 1,
        "fds of the server": len(list(Path(f"/proc/{server}/fd").iterdir())),
        "fds of all": sum(map(_fds, pids)),
        "threads of the server": len(list(Path(f"/proc/{server}/task").iterdir())),
        "RSS of the server, MB": _rss_mb(server),
        "PSS of all but Redis, MB": pss_bytes(set(pids) - set(stores)) / 1e6,
        "RSS of Redis, MB": sum(map(_rss_mb, stores)),
        "mounts in all their namespaces": _mounts(pids),
        "control groups on the host": sum(1 for _ in Path("/sys/fs/cgroup").glob("**/cgroup.procs")),
        "sockets of the host": _sockets(),
        **_redis(stores[0]),
    }


def table(seen: dict[int, Seen]) -> str:
    lines = ["| | before | after | per 1000 sessions |", "|---|---|---|---|"]
    counts = list(seen)
    warm = [count for count in counts if count >= counts[-1] / 10]
    for name, before in seen[0].items():
        slope = 1000 * statistics.linear_regression(warm, [seen[count][name] for count in warm]).slope
        lines.append(f"| {name} | {before:.6g} | {seen[counts[-1]][name]:.6g} | {slope:+.3g} |")
    return "\n".join(lines)


def _fds(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0]) / 1e6


def _mounts(pids: list[int]) -> int:
    """Each mount namespace counted once."""
    of_namespace: dict[int, int] = {}
    for pid in pids:
        try:
            namespace = Path(f"/proc/{pid}/ns/mnt").stat().st_ino
            of_namespace[namespace] = len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
        except (FileNotFoundError, ProcessLookupError, OSError):
            continue
    return sum(of_namespace.values())


def _sockets() -> int:
    return int(Path("/proc/net/sockstat").read_text().split()[2])


def _redis(pid: int) -> Seen:
    """Redis shows the path of its socket as its process title."""
    title = Path(f"/proc/{pid}/cmdline").read_text().strip("\0 ")
    with redis.Redis(unix_socket_path=title.partition("unixsocket:")[2]) as store:
        info = store.info("memory")
        return {"keys in Redis": store.dbsize(), "memory used in Redis, MB": info["used_memory"] / 1e6}


if __name__ == "__main__":
    main()

"""What one cell costs in a session that is there already."""

import time
from collections.abc import Callable, Sequence

from benchmarks.executor.cellar import CellarSide
from benchmarks.executor.report import Results, Row
from benchmarks.executor.sides import Side, Sizes
from benchmarks.executor.system import command, cpu_seconds

WARM = Row("warm cell print(1)", "ms", 1.5)
SERVER = Row("server CPU of a warm cell", "us", 300)
REDIS = Row("Redis CPU of a warm cell", "us")
KERNEL = Row("kernel CPU of a warm cell", "us")


def warm(results: Results, sides: Sequence[Side], sizes: Sizes) -> None:
    for side in sides:
        with results.kept(WARM, side.name):
            session = side.open()
            session.run("print(1)")
            for _ in range(sizes.warm_cells):
                start = time.perf_counter()
                session.run("print(1)")
                results.add(WARM, side.name, 1e3 * (time.perf_counter() - start))
            session.close()


def server_cpu(results: Results, sides: Sequence[Side], sizes: Sizes) -> None:
    """By the scheduler's own count of every thread. ipykernel has no server: its kernel does all."""
    for side in sides:
        parts = _parts(side)
        with results.kept(next(iter(parts)), side.name):
            session = side.open()
            session.run("print(1)")
            before = {row: total() for row, total in _parts(side).items()}
            for _ in range(sizes.warm_cells):
                session.run("print(1)")
            for row, total in _parts(side).items():
                results.add(row, side.name, 1e6 * (total() - before[row]) / sizes.warm_cells)
            session.close()


def _parts(side: Side) -> dict[Row, Callable[[], float]]:
    pids = side.pids()
    if not isinstance(side, CellarSide):
        return {KERNEL: lambda: sum(map(cpu_seconds, pids))}
    redis = [pid for pid in pids if command(pid) == "redis-server"]
    others = [pid for pid in pids if pid != side.server_pid and pid not in redis]
    return {
        SERVER: lambda: cpu_seconds(side.server_pid),
        REDIS: lambda: sum(map(cpu_seconds, redis)),
        KERNEL: lambda: sum(map(cpu_seconds, others)),
    }

"""What durability costs: the same server, while its Redis flushes every write, once a second, or has no file at all."""

import time
from itertools import product

from benchmarks.executor.cluster import Cluster, cluster
from benchmarks.executor.load import close, load, opened
from benchmarks.executor.report import Results, Row
from benchmarks.executor.sides import Sizes
from benchmarks.executor.system import disk_flushes, machine

OURS = "flushed always"
POLICIES = {
    OURS: ("appendonly yes", "appendfsync always"),
    "every second": ("appendonly yes", "appendfsync everysec"),
    "no file": ("appendonly no",),
}
CLIENTS = (1, 8, 32)
SETTLE_S = 0.05


def measure(results: Results, rounds: int, sizes: Sizes) -> None:
    with cluster(1, "--durability", "off") as servers:
        print(machine(servers.sides[0].described()), flush=True)
        for _, clients in product(range(rounds), CLIENTS):
            for who, settings in POLICIES.items():
                _set(servers, settings)
                _cells(results, servers, who, clients, sizes)


def _cells(results: Results, servers: Cluster, who: str, clients: int, sizes: Sizes) -> None:
    of = f"{clients} client{'s' * (clients > 1)}"
    rate = Row(f"cells, {of}", "/s", None, "more")
    with results.kept(rate, who):
        sessions = opened(servers.sides, clients)
        flushes = disk_flushes(servers.folder)
        seen = load(sessions, sizes.warm_cells)
        flushed = disk_flushes(servers.folder)
        results.add(rate, who, seen.per_second)
        results.add(Row(f"warm cell, {of}", "ms"), who, seen.median_ms)
        if flushes is not None and flushed is not None:
            results.add(Row(f"flushes per cell, {of}", ""), who, (flushed - flushes) / seen.cells)
        close(sessions)
    results.note("Flushes are counted by the disk: those of others on the machine are among them.")


def _set(servers: Cluster, settings: tuple[str, ...]) -> None:
    for setting in settings:
        servers.redis(f"CONFIG SET {setting}")
    while servers.redis_info("aof_rewrite_in_progress") or servers.redis_info("aof_rewrite_scheduled"):
        time.sleep(SETTLE_S)

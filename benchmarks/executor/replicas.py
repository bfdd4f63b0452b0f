"""One to three servers on one Redis: durable cells per second, and what a request at the wrong server costs."""

import time

from benchmarks.executor.cellar import CellarSession
from benchmarks.executor.cluster import Cluster, cluster
from benchmarks.executor.load import close, load, opened
from benchmarks.executor.report import Results, Row
from benchmarks.executor.sides import Sizes
from benchmarks.executor.system import machine

REPLICAS = 3
OURS = "1 replica"
CLIENTS = 24
SETTLE_S = 2.0
"""Until the servers have made ready what the last sessions took."""

ALONE = Row("durable warm cell, one client", "ms", 1.5)
CROWDED = Row(f"the same, {CLIENTS} clients", "ms")
RATE = Row(f"durable cells, {CLIENTS} clients", "/s", None, "more")
PER_CPU = Row("cells per second of CPU: servers, kernels, Redis", "/s", None, "more")
OWNER = Row("warm cell, asked where the session is", "ms")
HOP = Row("the same, asked at another server", "ms")
HOP_RATIO = Row("the second against the first", "x")


def measure(results: Results, rounds: int, sizes: Sizes) -> None:
    with cluster(REPLICAS) as servers:
        print(machine(servers.sides[0].described()), flush=True)
        for _ in range(rounds):
            for count in range(1, REPLICAS + 1):
                _cells(results, servers, count, sizes)
            _hop(results, servers, sizes)


def _cells(results: Results, servers: Cluster, count: int, sizes: Sizes) -> None:
    who, sides = f"{count} replica{'s' * (count > 1)}", servers.sides[:count]
    with results.kept(ALONE, who):
        time.sleep(SETTLE_S)
        alone = opened(sides, 1)
        results.add(ALONE, who, load(alone, sizes.warm_cells).median_ms)
        sessions = opened(sides, CLIENTS)
        before = servers.cpu_seconds()
        seen = load(sessions, sizes.warm_cells)
        used = servers.cpu_seconds() - before
        results.add(CROWDED, who, seen.median_ms)
        results.add(RATE, who, seen.per_second)
        results.add(PER_CPU, who, seen.cells / used)
        close([*alone, *sessions])


def _hop(results: Results, servers: Cluster, sizes: Sizes) -> None:
    with results.kept(OWNER, OURS):
        time.sleep(SETTLE_S)
        session = servers.sides[0].open()
        elsewhere = CellarSession(servers.sides[1], session.session_id)
        owner, other = (load([asked], sizes.warm_cells).median_ms for asked in (session, elsewhere))
        results.add(OWNER, OURS, owner)
        results.add(HOP, OURS, other)
        results.add(HOP_RATIO, OURS, other / owner)
        session.close()

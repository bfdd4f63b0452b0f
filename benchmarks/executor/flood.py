"""What one tenant's flood does to another's cells: alone, beside a flood that a quota bounds, and one that none does.

The flood is 64 sessions of a second tenant, each with a client that runs a cell of some 10 ms of CPU again and again.
"""

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.executor.cellar import Http
from benchmarks.executor.report import Results, Row
from benchmarks.executor.sides import Sizes
from tests.executor_process import ExecutorProcess

OURS = "alone"
KEYS = {"victim": "0123456789abcdef", "flood": "fedcba9876543210"}
FLOODS = 64
BUSY = "sum(range(400_000))"
QUOTA = 2
"""Runs of a tenant at once, where it is bounded."""


def measure(results: Results, rounds: int, sizes: Sizes) -> None:
    env = {"CELLAR_EXECUTOR_API_KEYS": ",".join(f"{tenant}:{key}" for tenant, key in KEYS.items())}
    with TemporaryDirectory() as folder:
        bounded = ExecutorProcess(Path(folder, "bounded"), "--tenant-running", str(QUOTA), env=env)
        free = ExecutorProcess(Path(folder, "free"), env=env)
        with bounded, free:
            for _ in range(rounds):
                _cells(results, OURS, bounded.url, sizes)
                for who, server in ((f"flood, {QUOTA} at once", bounded), ("flood, no quota", free)):
                    with _flood(server.url):
                        _cells(results, who, server.url, sizes)


def _cells(results: Results, who: str, url: str, sizes: Sizes) -> None:
    with results.kept(Row("a cell of another tenant, p50", "ms"), who):
        client = _Client(url, "victim")
        took = []
        for _ in range(sizes.neighbour_cells):
            start = time.perf_counter()
            client.run("print(1)")
            took.append(1e3 * (time.perf_counter() - start))
        client.close()
        results.add(Row("a cell of another tenant, p50", "ms"), who, statistics.median(took))
        results.add(Row("a cell of another tenant, p99", "ms"), who, statistics.quantiles(took, n=100)[98])


@contextmanager
def _flood(url: str) -> Iterator[None]:
    enough = threading.Event()

    def flood() -> None:
        client = _Client(url, "flood")
        while not enough.is_set():
            client.run(BUSY)
        client.close()

    with ThreadPoolExecutor(FLOODS) as clients:
        going_on = [clients.submit(flood) for _ in range(FLOODS)]
        time.sleep(1)
        try:
            yield
        finally:
            enough.set()
    for client in going_on:
        client.result()


class _Client:
    def __init__(self, url: str, tenant: str) -> None:
        self._http = Http(url, KEYS[tenant])
        self._session = f"/v1/sessions/{self._http.post('/v1/sessions', {})['session_id']}"

    def run(self, code: str) -> None:
        run = self._http.post(f"{self._session}/run", {"code": code})
        if run["status"] != "ok":
            raise RuntimeError(run)

    def close(self) -> None:
        self._http.request("DELETE", self._session)

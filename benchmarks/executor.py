"""Executor against ipykernel (jupyter_client), interleaved: session start, warm cell, one-off execution per second.

    make bench            or: .venv/envs/bench/bin/python -m benchmarks.executor [--rounds 20]

Both are driven by a light client (http.client here, ZeroMQ there), because httpx alone costs about a millisecond of CPU
per request. Each round measures one then the other, so that whatever else the machine does meets both.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from tests.executor_process import ExecutorProcess

WARM_CELLS = 50
IMPORTS = "import numpy, sympy"


@dataclass
class Samples:
    """Seconds per operation, by what was measured and by whom."""

    by_name: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, name: str, who: str, seconds: float) -> None:
        self.by_name.setdefault(name, {}).setdefault(who, []).append(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    samples = Samples()
    with tempfile.TemporaryDirectory() as data_dir, ExecutorProcess(Path(data_dir)) as server:
        for i in range(rounds):
            measure_cellar(server.url, samples)
            measure_ipykernel(samples)
            print(f"\rround {i + 1}/{rounds}", end="", flush=True)
    print()
    report(samples)


def measure_cellar(url: str, samples: Samples) -> None:
    http = Http(url)
    http.request("GET", "/healthz")
    for name, first_cell in (("session start + print(1)", "print(1)"), ("session start + numpy, sympy", IMPORTS)):
        with timed(samples, name, "cellar"):
            session = http.post("/v1/sessions", {})["session_id"]
            http.run(session, first_cell)
        if first_cell == "print(1)":
            for _ in range(WARM_CELLS):
                with timed(samples, "warm cell print(1)", "cellar"):
                    http.run(session, "print(1)")
        http.request("DELETE", f"/v1/sessions/{session}")
    with timed(samples, "execute print(1), one-off", "cellar"):
        http.post("/v1/execute", {"code": "print(1)"})


def measure_ipykernel(samples: Samples) -> None:
    for name, first_cell in (("session start + print(1)", "print(1)"), ("session start + numpy, sympy", IMPORTS)):
        start = time.perf_counter()
        manager, client = start_new_kernel(kernel_name="python3")
        ask(client, first_cell)
        samples.add(name, "ipykernel", time.perf_counter() - start)
        if first_cell == "print(1)":
            for _ in range(WARM_CELLS):
                with timed(samples, "warm cell print(1)", "ipykernel"):
                    ask(client, "print(1)")
        stop(manager, client)
    with timed(samples, "execute print(1), one-off", "ipykernel"):
        manager, client = start_new_kernel(kernel_name="python3")
        ask(client, "print(1)")
        stop(manager, client)


def ask(client: BlockingKernelClient, code: str) -> None:
    reply = client.execute_interactive(code, output_hook=lambda message: None, timeout=60)
    if reply["content"]["status"] != "ok":
        raise RuntimeError(reply)


def stop(manager: KernelManager, client: BlockingKernelClient) -> None:
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@contextmanager
def timed(samples: Samples, name: str, who: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    samples.add(name, who, time.perf_counter() - start)


class Http:
    """One kept-alive connection; raises on anything but success."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self.request("POST", path, json.dumps(body)))
        return reply

    def run(self, session_id: str, code: str) -> None:
        run = self.post(f"/v1/sessions/{session_id}/run", {"code": code})
        if run["status"] != "ok":
            raise RuntimeError(run)

    def request(self, method: str, path: str, body: str | None = None) -> bytes:
        self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = self._connection.getresponse()
        content = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {content!r}")
        return content


def report(samples: Samples) -> None:
    p95: Callable[[list[float]], float] = lambda xs: statistics.quantiles(xs, n=20)[-1]  # noqa: E731
    print("| what | n | cellar p50 | p95 | ipykernel p50 | p95 | ratio of p50 |\n|---|---|---|---|---|---|---|")
    for name, by_who in samples.by_name.items():
        ours, theirs = by_who["cellar"], by_who["ipykernel"]
        ratio = statistics.median(theirs) / statistics.median(ours)
        cells = [f"{1e3 * f(x):.1f} ms" for x in (ours, theirs) for f in (statistics.median, p95)]
        print(f"| {name} | {len(ours)} | {' | '.join(cells)} | {ratio:.1f}x |")


if __name__ == "__main__":
    main()

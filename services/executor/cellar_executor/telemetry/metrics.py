"""What the server counts and times, for Prometheus. No tenant, session or cell is ever a label (docs/observability.md).

One cell through HTTP costs about ten of these calls, a microsecond each: children are looked up once and kept.
"""

import platform
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cellar_client.schemas import Run
from cellar_executor import __version__
from cellar_executor.kernel import Stock

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
"""A client may send any word as a method, and each would be a series of its own."""
OTHER = "other"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each series, of no use here
_registry = CollectorRegistry()


def _counter(name: str, about: str, *labels: str) -> Counter:
    return Counter(f"cellar_{name}", about, labels, registry=_registry)


def _histogram(name: str, about: str, *labels: str) -> Histogram:
    return Histogram(f"cellar_{name}", about, labels, registry=_registry, buckets=BUCKETS_S)


_cells = cache(_counter("cells", "Cells that ended, by status.", "status").labels)
_runs = cache(_counter("runs", "Runs that ended, by status.", "status").labels)
_queue_s = _histogram("run_queue_seconds", "From a run's arrival to its first cell.")
_cell_s = _histogram("cell_run_seconds", "Wall-clock time of a cell.")
_redis_s = cache(_histogram("redis_seconds", "A script's way to Redis and back.", "script").labels)
_requests = cache(_counter("http_requests", "Requests answered.", "route", "method", "status").labels)
_request_s = cache(
    _histogram("http_request_seconds", "From a request's head to the end of its answer.", "route").labels
)

redis_failures = _counter("redis_failures", "Times that Redis did not answer, or could not write.")
sessions_taken_over = _counter("sessions_taken_over", "Sessions taken over from servers whose lease had ended.")
sessions_lost = _counter("sessions_lost", "Sessions whose state was found to be gone for good.")
sessions_evicted = _counter("sessions_evicted", "Idle sessions whose kernel was given back, by reason.", "reason")
forwarded = _counter("forwarded_requests", "Requests handed on to the server that holds the session.", "outcome")
refusals = _counter("refusals", "Requests refused, by the problem's code.", "code")


def run_begun(queue_s: float) -> None:
    _queue_s.observe(queue_s)


def run_ended(run: Run, *, session_lost: bool = False) -> None:
    """With its cells, those that it skipped included."""
    _runs(run.status).inc()
    for cell in run.cells:
        _cells(cell.status).inc()
        if cell.duration_s is not None:
            _cell_s.observe(cell.duration_s)
    if session_lost:
        sessions_lost.inc()


def redis_answered(script: str, duration_s: float) -> None:
    _redis_s(script).observe(duration_s)


def request_ended(route: str, method: str, status: int, duration_s: float) -> None:
    _requests(route, method if method in METHODS else OTHER, str(status)).inc()
    _request_s(route).observe(duration_s)


class Server(Protocol):
    """What is looked at when somebody asks, rather than counted as it happens."""

    @property
    def instance(self) -> str: ...

    def session_states(self) -> Mapping[str, int]: ...

    def runs_in_progress(self) -> Mapping[str, int]: ...

    def stock(self) -> Mapping[str, Stock]: ...

    def lease_age_s(self) -> float | None: ...


def exposition(server: Server) -> bytes:
    """All metrics, in Prometheus' text format."""
    return generate_latest(_registry) + generate_latest(_State(server))


class _State(Collector):
    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterable[Metric]:
        server, stock = self._server, self._server.stock()
        yield _gauge("sessions", "Sessions that this server holds.", "state", server.session_states())
        yield _gauge("runs_in_progress", "Runs that have arrived and not ended.", "state", server.runs_in_progress())
        yield _gauge("pool_ready", "Warm sessions that wait.", "runtime", {n: s.ready for n, s in stock.items()})
        yield _gauge("zygotes", "Zygotes that make sessions.", "runtime", {n: s.zygotes for n, s in stock.items()})
        made = CounterMetricFamily("cellar_zygote_sessions_made", "Warm sessions cloned.", labels=["runtime"])
        for runtime, of_it in stock.items():
            made.add_metric([runtime], of_it.made)
        yield made
        age_s = server.lease_age_s()
        if age_s is not None:
            yield GaugeMetricFamily("cellar_lease_age_seconds", "Since the lease was last renewed.", value=age_s)
        build = GaugeMetricFamily("cellar_build_info", "Always 1.", labels=["version", "python", "instance"])
        build.add_metric([__version__, platform.python_version(), server.instance], 1)
        yield build


def _gauge(name: str, about: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"cellar_{name}", about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family

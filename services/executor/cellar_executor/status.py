"""What the server knows about itself: for probes, for clients that ask what is in force, and for metrics."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping

from cellar_client.schemas import Health, Info, Limits, Readiness
from cellar_executor import __version__
from cellar_executor.errors import StoreUnavailable
from cellar_executor.kernel import Stock, Supervisor
from cellar_executor.runner import Runner
from cellar_executor.sessions import LiveSessions
from cellar_executor.store import Store
from cellar_executor.store.lease import Lease
from cellar_executor.tenancy.fairness import FairQueue

SELF_TEST_EVERY_S = 10.0


class Status:
    """Implements `telemetry.metrics.Server`."""

    def __init__(
        self,
        store: Store,
        supervisor: Supervisor,
        sessions: LiveSessions,
        runner: Runner,
        queue: FairQueue,
        *,
        limits: Limits,
        runtimes: frozenset[str],
        max_sessions: int,
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._sessions = sessions
        self._runner = runner
        self._queue = queue
        self._limits = limits
        self._runtimes = runtimes
        self._max_sessions = max_sessions
        self._self_test: tuple[float, str] | None = None
        self._self_testing = asyncio.Lock()
        self.lease: Lease | None = None
        """By which the server holds its sessions on a shared Redis."""

    @property
    def instance(self) -> str:
        """The name of this server among those that share its Redis."""
        return self._store.instance

    def health(self) -> Health:
        isolated = self._supervisor.isolation.tier != "none"
        return Health(status="ok", isolation="isolated" if isolated else "INSECURE: no isolation")

    async def readiness(self) -> Readiness:
        redis, isolation = await self._redis_state(), await self._isolation_state()
        ready = redis == isolation == "ok" and not self._runner.draining
        return Readiness(
            status="ready" if ready else "not_ready",
            redis=redis,
            isolation=isolation,
            effective=self._supervisor.isolation,
        )

    def info(self) -> Info:
        return Info(
            version=__version__,
            instance=self.instance,
            isolation=self._supervisor.isolation,
            limits=self._limits,
            max_sessions=self._max_sessions,
            runtimes=sorted(self._runtimes),
        )

    def session_states(self) -> Mapping[str, int]:
        """How many of the sessions that this server holds are in which state."""
        return Counter(live.state for live in self._sessions)

    def runs_in_progress(self) -> Mapping[str, int]:
        return {"waiting": self._queue.waiting.total(), "running": self._queue.running.total()}

    def stock(self) -> Mapping[str, Stock]:
        return self._supervisor.stock()

    def lease_age_s(self) -> float | None:
        """None: this server has its Redis to itself, and needs no lease."""
        return None if self.lease is None else self.lease.age_s

    async def _redis_state(self) -> str:
        try:
            await self._store.probe()
        except StoreUnavailable as error:
            return error.detail
        return "ok"

    async def _isolation_state(self) -> str:
        async with self._self_testing:
            if self._self_test is None or time.monotonic() - self._self_test[0] > SELF_TEST_EVERY_S:
                found = await self._supervisor.self_test() or "ok"
                self._self_test = (time.monotonic(), found)
            return self._self_test[1]

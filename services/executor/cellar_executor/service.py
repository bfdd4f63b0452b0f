"""The use cases: what each route means. Between HTTP, which it does not know, and the store and the kernels."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from cellar_client.schemas import (
    Cell,
    Cells,
    CreateSession,
    ExecuteRequest,
    Files,
    ForkRequest,
    Health,
    Info,
    Limits,
    QueueCells,
    Readiness,
    Run,
    RunAccepted,
    RunRequest,
    Session,
    SessionPage,
    Sessions,
)
from cellar_executor import __version__
from cellar_executor.admission import session_config
from cellar_executor.background import Background
from cellar_executor.errors import Moved, Refusal, StoreUnavailable
from cellar_executor.events import RunEvents
from cellar_executor.execute import Executions
from cellar_executor.files import SessionFiles
from cellar_executor.forks import Forks
from cellar_executor.idempotency import Idempotency
from cellar_executor.idle import IdleSessions
from cellar_executor.ids import Ids, Ref
from cellar_executor.kernel import Stock, Supervisor
from cellar_executor.presence import Presence
from cellar_executor.records import SessionRecord
from cellar_executor.recovery import Recovery
from cellar_executor.replay import Replay
from cellar_executor.runner import Runner
from cellar_executor.sessions import LiveSession, LiveSessions, wire
from cellar_executor.store import Store
from cellar_executor.store.lease import Lease
from cellar_executor.telemetry import metrics
from cellar_executor.tenancy.fairness import FairQueue
from cellar_executor.tenancy.rates import Rates
from cellar_executor.tenancy.tenants import Tenants

SELF_TEST_EVERY_S = 10.0
LAST_WRITES_S = 5.0
RESUMED_S = 1.0
"""How long a run that was queued and is tried again is waited for at least: so long it may take to be refused again."""

log = logging.getLogger(__name__)


class Service:
    def __init__(
        self,
        store: Store,
        supervisor: Supervisor,
        tenants: Tenants,
        *,
        limits: Limits,
        runtimes: frozenset[str],
        max_sessions: int,
        max_running: int,
        idle_ttl_s: float,
        park_after_s: float,
        min_free_memory_mb: int,
        replay_timeout_s: float,
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self.tenants = tenants
        self._limits = limits
        self._runtimes = runtimes
        self._max_sessions = max_sessions
        self._idle_ttl_s = idle_ttl_s
        self.background = Background()
        self._sessions = LiveSessions(supervisor, max_sessions, tenants, self.background)
        self.idle = IdleSessions(self._sessions, park_after_s=park_after_s, min_free_bytes=min_free_memory_mb * 2**20)
        self._taking = asyncio.Lock()
        self.lease: Lease | None = None
        """By which it holds its sessions on a shared Redis."""
        store.on_moved = self._sessions.abandon
        replay = Replay(store, timeout_s=replay_timeout_s)
        recovery = Recovery(store, self._sessions, replay)
        self._queue = FairQueue(tenants, max_running)
        self._rates = Rates(tenants)
        self._executions = Executions(self._sessions, self._queue, self._rates, limits, runtimes)
        self._runner = Runner(store, recovery, self._queue, self.background)
        self._files = SessionFiles(store, recovery, self.background)
        self._forks = Forks(store, self._sessions, recovery, replay, tenants)
        self._self_test: tuple[float, str] | None = None
        self._self_testing = asyncio.Lock()
        self.idempotency = Idempotency(store, self.background)

    # --- whose session it is ------------------------------------------------------------------------

    @property
    def instance(self) -> str:
        """The name of this server among those that share its Redis."""
        return self._store.instance

    async def elsewhere(self, ref: Ref) -> str | None:
        """URL of the live server that holds the session, if that is another one."""
        return None if self._sessions.get(ref) is not None else await self._store.elsewhere(ref)

    def forget_sessions(self) -> None:
        """The lease had ended, so others may have taken them: each is taken anew when it is next asked for."""
        for live in self._sessions:
            self._sessions.abandon(live.owned)

    # --- sessions -----------------------------------------------------------------------------------

    async def create(self, tenant: str, request: CreateSession, ids: Ids) -> Session:
        """A session whose isolated kernel is ready."""
        config = session_config(request, self._limits, self._sessions.tier, self._runtimes, self._idle_ttl_s)
        ref = Ref(tenant, request.session_id or ids.session())
        if request.session_id is not None or ids.resumed:  # else nobody can have had this id before
            [origin] = await self._store.origins([ref])
            if origin == ids.nonce:
                return await self.get(ref)
            if origin is not None:
                raise Refusal("session_exists")
        with self._sessions.reserve(tenant, config.limits.memory_mb):
            live = await self._sessions.open(ref, config)
        try:
            quota = self.tenants.quota(tenant)
            record = await self._store.create(ref, config, origin=ids.nonce, max_sessions=quota.sessions)
        except BaseException:
            await self._sessions.close(ref)
            raise
        log.info("session created", extra={"session_id": ref.session_id})
        return wire(record, live)

    async def get(self, ref: Ref) -> Session:
        live = await self._live(ref)
        return wire(await self._store.session(ref), live)

    async def list(self, tenant: str, cursor: str | None, limit: int) -> SessionPage:
        records = await self._store.list_sessions(tenant, cursor, limit + 1)
        page = records[:limit]
        return SessionPage(
            sessions=list(await self._wired(page)),
            next_cursor=page[-1].ref.session_id if len(records) > limit else None,
        )

    async def delete(self, ref: Ref) -> None:
        try:
            await self._store.delete((await self._live(ref)).owned)
        except Refusal as refusal:
            if refusal.code != "session_not_found":
                raise
        await self._sessions.close(ref)

    async def interrupt(self, ref: Ref) -> None:
        live = await self._live(ref)
        live.refuse_if_lost()
        live.interrupt()

    async def reset(self, ref: Ref) -> Session:
        """A fresh namespace and fresh files, after the runs that came before. What is pending stays pending."""
        live = await self._live(ref)
        async with live.my_turn():
            with self._sessions.reserve(ref.tenant, live.config.limits.memory_mb, replaced=int(live.alive)):
                kernel, old = await self._sessions.fresh_kernel(live.config), live.kernel
            try:
                await self._store.new_generation(live.owned, live.generation + 1, live.config.idle_ttl_s, reset=True)
                self._sessions.renew(live, kernel)
            except BaseException:
                await kernel.close()
                raise
            live.recovered = False
            if old is not None:
                await old.close()
        return await self.get(ref)

    async def fork(self, ref: Ref, request: ForkRequest, ids: Ids) -> Sessions:
        records = await self._forks.fork(await self._live(ref), request, ids)
        log.info("session forked", extra={"session_id": ref.session_id, "copies": len(records)})
        return Sessions(sessions=list(await self._wired(records)))

    # --- cells and runs -----------------------------------------------------------------------------

    async def queue(self, ref: Ref, request: QueueCells, ids: Ids) -> Cells:
        live = await self._live(ref)
        live.refuse_if_lost()
        new = [(cell.cell_id or ids.cell(i), cell.code) for i, cell in enumerate(request.as_list())]
        self._charge(ref.tenant, len(new), ids)
        accepted = await self._store.accept(live.owned, new, live.config.idle_ttl_s)
        records = await self._store.cells(ref, accepted.indices)
        return Cells(cells=[record.cell for record in records])

    async def cells(self, ref: Ref, after: int | None = None, limit: int | None = None) -> Cells:
        """Those behind the one with index `after`, so many at most."""
        await self._live(ref)
        total = (await self._store.session(ref)).cells_total
        first = 0 if after is None else after + 1
        end = total if limit is None else min(total, first + limit)
        records = await self._store.cells(ref, range(first, end))
        return Cells(cells=[record.cell for record in records], next_after=end - 1 if end < total else None)

    async def cell(self, ref: Ref, cell_id: str) -> Cell:
        await self._live(ref)
        return (await self._store.cell(ref, cell_id)).cell

    async def withdraw(self, ref: Ref, cell_id: str) -> Cell:
        live = await self._live(ref)
        return (await self._store.withdraw(live.owned, cell_id, live.config.idle_ttl_s)).cell

    async def run(
        self,
        ref: Ref,
        request: RunRequest,
        ids: Ids,
        presence: Presence | None = None,
        events: RunEvents | None = None,
    ) -> Run:
        live = await self._live(ref)
        self._charge(ref.tenant, int(request.code is not None), ids)
        return await self._runner.run(live, request, ids, presence, events)

    async def enqueue_run(self, ref: Ref, request: RunRequest, ids: Ids) -> RunAccepted:
        live = await self._live(ref)
        self._charge(ref.tenant, int(request.code is not None), ids)
        return await self._runner.enqueue(live, request, ids)

    async def find_run(self, ref: Ref, run_id: str, wait_s: float) -> Run | None:
        """A run on its way or from its record; None if it goes on for longer than `wait_s`."""
        live = await self._live(ref)
        try:
            return await self._runner.find(ref, run_id, wait_s)
        except Refusal as refusal:
            if refusal.code != "run_not_found":
                raise
        await self._runner.resume(live)
        return await self._runner.find(ref, run_id, max(wait_s, RESUMED_S))

    async def execute(self, tenant: str, request: ExecuteRequest, ids: Ids, presence: Presence | None = None) -> Run:
        return await self._executions.execute(tenant, request, ids, presence)

    # --- files --------------------------------------------------------------------------------------

    async def put_file(self, ref: Ref, path: str, data: bytes) -> None:
        await self._files.put(await self._live(ref), path, data)

    async def get_file(self, ref: Ref, path: str) -> bytes:
        return await self._files.get(await self._live(ref), path)

    async def delete_file(self, ref: Ref, path: str) -> None:
        await self._files.delete(await self._live(ref), path)

    async def files(self, ref: Ref) -> Files:
        return await self._files.list(await self._live(ref))

    # --- the server about itself --------------------------------------------------------------------

    def health(self) -> Health:
        isolated = self._supervisor.isolation.tier != "none"
        return Health(status="ok", isolation="isolated" if isolated else "INSECURE: no isolation")

    async def readiness(self) -> Readiness:
        redis, isolation = await self._redis_state(), await self._isolation_state()
        ready = redis == isolation == "ok" and not self.draining
        return Readiness(
            status="ready" if ready else "not_ready",
            redis=redis,
            isolation=isolation,
            effective=self._supervisor.isolation,
        )

    def info(self) -> Info:
        return Info(
            version=__version__,
            instance=self._store.instance,
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
        """None: this server has its Redis to itself, and needs none."""
        return None if self.lease is None else self.lease.age_s

    # --- the life of the server ---------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        return self._runner.draining

    async def drain(self, timeout_s: float) -> None:
        """Take no new work and wait for what runs, for so long at most."""
        self._runner.draining = True
        for live in self._sessions:
            self.background.start(self._hand_over(live))
        await self.background.drain(timeout_s)

    async def close(self) -> None:
        """Close all kernels. A cell that still ran is recorded as killed, if Redis takes that soon."""
        await self._sessions.close_all()
        await self.background.drain(LAST_WRITES_S)
        await self.background.cancel()

    async def expire(self) -> None:
        """Delete the sessions that were idle for too long."""
        if self.draining:
            return
        for ref in await self._store.expired():
            try:
                live = await self._live(ref)
                if live.in_line or not await self._store.delete(live.owned, only_if_expired=True):
                    continue
            except Moved:
                continue  # another server holds it, and sees to it
            except Refusal as refusal:
                if refusal.code != "session_not_found":
                    raise
            await self._sessions.close(ref)
            log.info("session expired", extra={"session_id": ref.session_id})

    async def _hand_over(self, live: LiveSession) -> None:
        """After what runs, its kernel is closed and the session free for another server, or this one's successor."""
        async with live.my_turn():
            if live.kernel is not None:
                await live.kernel.close()
            self._sessions.abandon(live.owned)
            try:
                await self._store.release(live.owned)
            except Refusal as refusal:  # then it is free when the lease ends
                log.warning("session not handed over: %s", refusal, extra={"session_id": live.ref.session_id})

    async def _wired(self, records: Sequence[SessionRecord]) -> Sequence[Session]:
        held = [self._sessions.get(record.ref) for record in records]
        living = await self._store.instances() if None in held else {}
        return [wire(record, live, living) for record, live in zip(records, held, strict=True)]

    # --- below --------------------------------------------------------------------------------------

    def _charge(self, tenant: str, cells: int, ids: Ids) -> None:
        """Raises `quota_exceeded`. Cells of a request that was begun before are handed in already."""
        if not ids.resumed:
            self._rates.charge(tenant, cells)

    async def _live(self, ref: Ref) -> LiveSession:
        """The session as this server holds it, taken over if no live server does.

        Raises `session_not_found`, `Moved` while another server holds it, `shutting_down`.
        """
        live = self._sessions.get(ref)
        if live is not None:
            return live
        async with self._taking:
            live = self._sessions.get(ref)
            if live is not None:
                return live
            if self.draining:
                raise Refusal("shutting_down")
            record, queued = await self._store.take(ref), await self._store.queued_runs(ref)
            live = self._sessions.adopt(record)
            self._runner.line_up(live, queued)
        metrics.sessions_taken_over.inc()
        if live.lost:
            metrics.sessions_lost.inc()
        log.info("session taken over", extra={"session_id": ref.session_id, "epoch": live.epoch})
        return live

    async def _redis_state(self) -> str:
        try:
            await self._store.ping()
        except StoreUnavailable as error:
            return error.detail
        return "ok"

    async def _isolation_state(self) -> str:
        async with self._self_testing:
            if self._self_test is None or time.monotonic() - self._self_test[0] > SELF_TEST_EVERY_S:
                found = await self._supervisor.self_test() or "ok"
                self._self_test = (time.monotonic(), found)
            return self._self_test[1]

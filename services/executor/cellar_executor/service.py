"""The use cases: what each route means. Between HTTP, which it does not know, and the store and the kernels."""

import logging

from cellar_client.schemas import (
    Cell,
    Cells,
    CreateSession,
    ExecuteRequest,
    Files,
    ForkRequest,
    Limits,
    QueueCells,
    Run,
    RunAccepted,
    RunRequest,
    Session,
    SessionPage,
    Sessions,
)
from cellar_executor.admission import session_config
from cellar_executor.background import Background
from cellar_executor.errors import Refusal
from cellar_executor.events import RunEvents
from cellar_executor.execute import Executions
from cellar_executor.files import SessionFiles
from cellar_executor.forks import Forks
from cellar_executor.holding import Holding
from cellar_executor.idempotency import Idempotency
from cellar_executor.idle import IdleSessions
from cellar_executor.ids import Ids, Ref
from cellar_executor.kernel import Supervisor
from cellar_executor.presence import Presence
from cellar_executor.recovery import Recovery
from cellar_executor.replay import Replay
from cellar_executor.runner import Runner
from cellar_executor.sessions import LiveSessions, wire
from cellar_executor.status import Status
from cellar_executor.store import Store
from cellar_executor.tenancy.fairness import FairQueue
from cellar_executor.tenancy.rates import Rates
from cellar_executor.tenancy.tenants import Tenants

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
        self.tenants = tenants
        self._limits = limits
        self._runtimes = runtimes
        self._idle_ttl_s = idle_ttl_s
        self.background = Background()
        self._sessions = LiveSessions(supervisor, max_sessions, tenants, self.background)
        self.idle = IdleSessions(
            store, self._sessions, park_after_s=park_after_s, min_free_bytes=min_free_memory_mb * 2**20
        )
        replay = Replay(store, timeout_s=replay_timeout_s)
        recovery = Recovery(store, self._sessions, replay)
        queue = FairQueue(tenants, max_running)
        self._rates = Rates(tenants)
        self._executions = Executions(self._sessions, queue, self._rates, limits, runtimes)
        self._runner = Runner(store, recovery, queue, self.background)
        self.holding = Holding(store, self._sessions, self._runner, self.background)
        self.status = Status(
            store,
            supervisor,
            self._sessions,
            self._runner,
            queue,
            limits=limits,
            runtimes=runtimes,
            max_sessions=max_sessions,
        )
        self._files = SessionFiles(store, recovery, self.background)
        self._forks = Forks(store, self._sessions, recovery, replay, tenants)
        self.idempotency = Idempotency(store, self.background)

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
        live = await self.holding.get(ref)
        return wire(await self._store.session(ref), live)

    async def list(self, tenant: str, cursor: str | None, limit: int) -> SessionPage:
        records = await self._store.list_sessions(tenant, cursor, limit + 1)
        page = records[:limit]
        return SessionPage(
            sessions=await self.holding.wired(page),
            next_cursor=page[-1].ref.session_id if len(records) > limit else None,
        )

    async def delete(self, ref: Ref) -> None:
        try:
            await self._store.delete((await self.holding.get(ref)).owned)
        except Refusal as refusal:
            if refusal.code != "session_not_found":
                raise
        await self._sessions.close(ref)

    async def interrupt(self, ref: Ref) -> None:
        live = await self.holding.get(ref)
        live.refuse_if_lost()
        live.interrupt()

    async def reset(self, ref: Ref) -> Session:
        """A fresh namespace and fresh files, after the runs that came before. What is pending stays pending."""
        live = await self.holding.get(ref)
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
        records = await self._forks.fork(await self.holding.get(ref), request, ids)
        log.info("session forked", extra={"session_id": ref.session_id, "copies": len(records)})
        return Sessions(sessions=await self.holding.wired(records))

    # --- cells and runs -----------------------------------------------------------------------------

    async def queue(self, ref: Ref, request: QueueCells, ids: Ids) -> Cells:
        live = await self.holding.get(ref)
        live.refuse_if_lost()
        new = [(cell.cell_id or ids.cell(i), cell.code) for i, cell in enumerate(request.as_list())]
        self._charge(ref.tenant, len(new), ids)
        accepted = await self._store.accept(live.owned, new, live.config.idle_ttl_s)
        records = await self._store.cells(ref, accepted.indices)
        return Cells(cells=[record.cell for record in records])

    async def cells(self, ref: Ref, after: int | None = None, limit: int | None = None) -> Cells:
        """Those behind the one with index `after`, so many at most."""
        await self.holding.get(ref)
        total = (await self._store.session(ref)).cells_total
        first = 0 if after is None else after + 1
        end = total if limit is None else min(total, first + limit)
        records = await self._store.cells(ref, range(first, end))
        return Cells(cells=[record.cell for record in records], next_after=end - 1 if end < total else None)

    async def cell(self, ref: Ref, cell_id: str) -> Cell:
        await self.holding.get(ref)
        return (await self._store.cell(ref, cell_id)).cell

    async def withdraw(self, ref: Ref, cell_id: str) -> Cell:
        live = await self.holding.get(ref)
        return (await self._store.withdraw(live.owned, cell_id, live.config.idle_ttl_s)).cell

    async def run(
        self,
        ref: Ref,
        request: RunRequest,
        ids: Ids,
        presence: Presence | None = None,
        events: RunEvents | None = None,
    ) -> Run:
        live = await self.holding.get(ref)
        self._charge(ref.tenant, int(request.code is not None), ids)
        return await self._runner.run(live, request, ids, presence, events)

    async def enqueue_run(self, ref: Ref, request: RunRequest, ids: Ids) -> RunAccepted:
        live = await self.holding.get(ref)
        self._charge(ref.tenant, int(request.code is not None), ids)
        return await self._runner.enqueue(live, request, ids)

    async def find_run(self, ref: Ref, run_id: str, wait_s: float) -> Run | None:
        """A run on its way or from its record; None if it goes on for longer than `wait_s`."""
        live = await self.holding.get(ref)
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
        await self._files.put(await self.holding.get(ref), path, data)

    async def get_file(self, ref: Ref, path: str) -> bytes:
        return await self._files.get(await self.holding.get(ref), path)

    async def delete_file(self, ref: Ref, path: str) -> None:
        await self._files.delete(await self.holding.get(ref), path)

    async def files(self, ref: Ref) -> Files:
        return await self._files.list(await self.holding.get(ref))

    # --- the life of the server ---------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        return self._runner.draining

    async def drain(self, timeout_s: float) -> None:
        """Take no new work and wait for what runs, for so long at most."""
        self._runner.draining = True
        self.holding.hand_over_all()
        await self.background.drain(timeout_s)

    async def close(self) -> None:
        """Close all kernels. A cell that still ran is recorded as killed, if Redis takes that soon."""
        await self._sessions.close_all()
        await self.background.drain(LAST_WRITES_S)
        await self.background.cancel()

    # --- below --------------------------------------------------------------------------------------

    def _charge(self, tenant: str, cells: int, ids: Ids) -> None:
        """Raises `quota_exceeded`. Cells of a request that was begun before are handed in already."""
        if not ids.resumed:
            self._rates.charge(tenant, cells)

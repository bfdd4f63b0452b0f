"""The use cases: what each route means. Between HTTP, which it does not know, and the store and the kernels."""

import asyncio
import logging
import time

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
    RunRequest,
    Session,
    SessionPage,
    Sessions,
)
from cellar_executor import __version__
from cellar_executor.admission import session_config
from cellar_executor.background import Background
from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.execute import execute
from cellar_executor.files import SessionFiles
from cellar_executor.forks import Forks
from cellar_executor.idempotency import Idempotency
from cellar_executor.ids import Ids, Ref
from cellar_executor.kernel import Supervisor
from cellar_executor.recovery import Recovery
from cellar_executor.replay import Replay
from cellar_executor.runner import Runner
from cellar_executor.sessions import LiveSession, LiveSessions, wire
from cellar_executor.store import Store

SELF_TEST_EVERY_S = 10.0
LAST_WRITES_S = 5.0

log = logging.getLogger(__name__)


class Service:
    def __init__(
        self,
        store: Store,
        supervisor: Supervisor,
        *,
        limits: Limits,
        runtimes: frozenset[str],
        max_sessions: int,
        idle_ttl_s: float,
        replay_timeout_s: float,
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._limits = limits
        self._runtimes = runtimes
        self._max_sessions = max_sessions
        self._idle_ttl_s = idle_ttl_s
        self._sessions = LiveSessions(supervisor, max_sessions)
        self.background = Background()
        replay = Replay(store, timeout_s=replay_timeout_s)
        recovery = Recovery(store, self._sessions, replay)
        self._runner = Runner(store, recovery, self.background)
        self._files = SessionFiles(store, recovery, self.background)
        self._forks = Forks(store, self._sessions, recovery, replay)
        self._self_test: tuple[float, str] | None = None
        self._self_testing = asyncio.Lock()
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
        with self._sessions.reserve():
            live = await self._sessions.open(ref, config)
            try:
                record = await self._store.create(ref, config, origin=ids.nonce)
            except BaseException:
                await self._sessions.close(ref)
                raise
        log.info("session created", extra={"session_id": ref.session_id})
        return wire(record, live)

    async def get(self, ref: Ref) -> Session:
        return wire(await self._store.session(ref), self._sessions.get(ref))

    async def list(self, tenant: str, cursor: str | None, limit: int) -> SessionPage:
        records = await self._store.list_sessions(tenant, cursor, limit + 1)
        page = records[:limit]
        return SessionPage(
            sessions=[wire(record, self._sessions.get(record.ref)) for record in page],
            next_cursor=page[-1].ref.session_id if len(records) > limit else None,
        )

    async def delete(self, ref: Ref) -> None:
        await self._store.delete(ref)
        await self._sessions.close(ref)

    async def interrupt(self, ref: Ref) -> None:
        live = await self._live(ref)
        live.refuse_if_lost()
        live.interrupt()

    async def reset(self, ref: Ref) -> Session:
        """A fresh namespace and fresh files, after the runs that came before. What is pending stays pending."""
        live = await self._live(ref)
        async with live.my_turn():
            with self._sessions.reserve(replaced=int(live.alive)):
                kernel, old = await self._sessions.fresh_kernel(live.config), live.kernel
            try:
                await self._store.new_generation(ref, live.generation + 1, live.config.idle_ttl_s, reset=True)
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
        return Sessions(sessions=[wire(record, self._sessions.get(record.ref)) for record in records])

    # --- cells and runs -----------------------------------------------------------------------------

    async def queue(self, ref: Ref, request: QueueCells, ids: Ids) -> Cells:
        live = await self._live(ref)
        live.refuse_if_lost()
        new = [(cell.cell_id or ids.cell(i), cell.code) for i, cell in enumerate(request.as_list())]
        accepted = await self._store.accept(ref, new, live.config.idle_ttl_s)
        records = await self._store.cells(ref, accepted.indices)
        return Cells(cells=[record.cell for record in records])

    async def cells(self, ref: Ref) -> Cells:
        record = await self._store.session(ref)
        return Cells(cells=[r.cell for r in await self._store.cells(ref, range(record.cells_total))])

    async def cell(self, ref: Ref, cell_id: str) -> Cell:
        await self._store.session(ref)
        return (await self._store.cell(ref, cell_id)).cell

    async def withdraw(self, ref: Ref, cell_id: str) -> Cell:
        live = await self._live(ref)
        return (await self._store.withdraw(ref, cell_id, live.config.idle_ttl_s)).cell

    async def run(self, ref: Ref, request: RunRequest, ids: Ids) -> Run:
        return await self._runner.run(await self._live(ref), request, ids)

    async def earlier_run(self, ref: Ref, run_id: str) -> Run | None:
        """A run from its record; None while it goes on."""
        return await self._runner.earlier(ref, run_id)

    async def execute(self, request: ExecuteRequest, ids: Ids) -> Run:
        return await execute(request, ids, self._sessions, self._limits, self._runtimes)

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
            isolation=self._supervisor.isolation,
            limits=self._limits,
            max_sessions=self._max_sessions,
            runtimes=sorted(self._runtimes),
        )

    # --- the life of the server ---------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        return self._runner.draining

    async def drain(self, timeout_s: float) -> None:
        """Take no new work and wait for what runs, for so long at most."""
        self._runner.draining = True
        await self.background.drain(timeout_s)

    async def close(self) -> None:
        """Close all kernels. A cell that still ran is recorded as killed, if Redis takes that soon."""
        await self._sessions.close_all()
        await self.background.drain(LAST_WRITES_S)
        await self.background.cancel()

    async def expire(self) -> None:
        """Delete the sessions that were idle for too long."""
        for ref in await self._store.expired():
            live = self._sessions.get(ref)
            if live is not None and live.in_line:
                continue
            if await self._store.delete(ref, only_if_expired=True):
                await self._sessions.close(ref)
                log.info("session expired", extra={"session_id": ref.session_id})

    # --- below --------------------------------------------------------------------------------------

    async def _live(self, ref: Ref) -> LiveSession:
        live = self._sessions.get(ref)
        return live if live is not None else self._sessions.adopt(await self._store.session(ref))

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

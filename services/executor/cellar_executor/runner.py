"""Runs: a session's cells in their order of acceptance, each run in its turn.

The way of a run: arrive (its cell is accepted, its place in line taken) -> its turn -> a dead kernel is rebuilt, where
the session allows it -> begin -> cell after cell (`cell_by_cell`) -> an atomic run that failed is rolled back -> `Run`.

A run whose client does not wait (`enqueue`) is accepted whole, in the store. One that is refused when its turn comes
stays queued there, and is tried again when it is next asked for.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from cellar_client.schemas import Run, RunAccepted, RunRequest
from cellar_executor.admission import timeout_within
from cellar_executor.background import Background
from cellar_executor.cell_by_cell import CellByCell
from cellar_executor.durable import recorded, settle
from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.events import RunEvents
from cellar_executor.ids import Ids, Ref
from cellar_executor.jobs import Job
from cellar_executor.presence import Presence
from cellar_executor.records import Begun, CellRecord, Known, QueuedRun, RunHead, RunPlan
from cellar_executor.recovery import Recovery
from cellar_executor.runs import run_from
from cellar_executor.sessions import LiveSession
from cellar_executor.store import Store
from cellar_executor.telemetry import logs, tracing
from cellar_executor.tenancy.fairness import FairQueue

log = logging.getLogger(__name__)


class Runner:
    def __init__(self, store: Store, recovery: Recovery, queue: FairQueue, background: Background) -> None:
        self._store = store
        self._recovery = recovery
        self._queue = queue
        self._background = background
        self._cells = CellByCell(store, recovery)
        self._jobs: dict[tuple[Ref, str], tuple[Job, asyncio.Task[None]]] = {}
        self.draining = False

    async def run(
        self,
        live: LiveSession,
        request: RunRequest,
        ids: Ids,
        presence: Presence | None = None,
        events: RunEvents | None = None,
    ) -> Run:
        """Queue the request's code, if any, and run what is pending. Goes on to its end whatever becomes of the caller.

        With `presence` it does not: once that client has left, the cell that runs is interrupted, those after it are
        skipped, and a run that has not begun never does.

        Raises `limit_too_high`, `idempotency_mismatch`, `too_many_cells`, `request_in_progress`, `cell_not_pending`,
        `not_repeatable`, `quota_exceeded`, and what `Recovery.ensure_kernel` raises; `shutting_down`.
        """
        job = _job(live, request, ids, presence, events)
        if (on_its_way := self._jobs.get(job.name)) is None:
            self._start(job)
        else:  # it was queued, and now its client waits for it
            job, _ = on_its_way
            if events is not None:
                events.run(job.run_id)
        return await asyncio.shield(job.answer)

    async def enqueue(self, live: LiveSession, request: RunRequest, ids: Ids) -> RunAccepted:
        """Accept a run that goes on without its client: it is begun once, by this server or one that comes after it.

        Raises as `run` does, but for what only its turn can show; that is raised by `find`.
        """
        job = _job(live, request, ids)
        if ids.resumed and await self._was_accepted(job):
            return RunAccepted(run_id=job.run_id)
        job.refuse_what_cannot_be()
        with self._queue.place(live.ref.tenant):
            async with live.arrival:
                accepted = await self._store.enqueue(live.owned, _plan(job), live.config.idle_ttl_s, cell=job.cell)
        if isinstance(accepted, QueuedRun):
            self.line_up(live, [(accepted, request.code)])  # before whoever waits to arrive wakes up
        elif accepted.index is not None:
            return RunAccepted(run_id=await self._run_at(live.ref, accepted.index))
        return RunAccepted(run_id=job.run_id)

    async def resume(self, live: LiveSession) -> None:
        """Try again what is queued in the session and not on its way."""
        self.line_up(live, await self._store.queued_runs(live.ref))

    def line_up(self, live: LiveSession, queued: Sequence[tuple[QueuedRun, str | None]]) -> None:
        """Give queued runs, with the code of their own cells, places in line: before whoever arrives from now on."""
        for run, code in queued:
            job = Job(
                live=live,
                run_id=run.run_id,
                cell=None if run.cell_id is None or code is None else (run.cell_id, code),
                timeout_s=run.timeout_s,
                on_error=run.on_error,
                atomic=run.atomic,
                bound=run.bound,
            )
            if job.name not in self._jobs:
                job.answer.add_done_callback(partial(_noted, job))
                self._start(job)

    async def find(self, ref: Ref, run_id: str, wait_s: float = 0.0) -> Run | None:
        """A run that is on its way or was; None if it goes on for longer than `wait_s`.

        Raises `run_not_found`, and what a queued run was refused with in its turn.
        """
        if (on_its_way := self._jobs.get((ref, run_id))) is None:
            return await self._earlier(ref, run_id)
        job, task = on_its_way
        await asyncio.wait({task}, timeout=wait_s)
        if not task.done():
            return None
        if task.cancelled():
            raise Refusal("shutting_down")
        if isinstance(job.answer.exception(), StoreUnavailable):
            return await self._earlier(ref, run_id)  # its client was told to come back, and it went on
        return job.answer.result()

    def _start(self, job: Job) -> None:
        task = self._background.start(settle(job.answer, self._answer(job)))
        self._jobs[job.name] = job, task
        task.add_done_callback(lambda _: self._jobs.pop(job.name))

    async def _answer(self, job: Job) -> Run:
        names = {"session_id": job.live.ref.session_id, "run_id": job.run_id}
        logs.bind(**names)
        with tracing.span("run", names):
            try:
                return await self._take_turn(job)
            except Refusal as refusal:
                done_before = refusal.code in ("session_lost", "not_repeatable")
                first = await self._first_try(job) if done_before else None
                if first is None:
                    raise
                return first

    async def _first_try(self, job: Job) -> Run | None:
        """What became of this run, or of its own cell, if this is a retry. Raises `session_not_found`."""
        ref = (await self._store.session(job.live.ref)).ref
        if await self._store.has_run(ref, job.run_id):
            return await self._begun_before(ref, job.run_id)
        record = None if job.cell is None else await self._store.find_cell(ref, job.cell[0])
        if record is None or record.cell.status == "pending" or (record.cell.cell_id, record.cell.code) != job.cell:
            return None
        return await self._begun_before(ref, _run_of(record))

    async def _take_turn(self, job: Job) -> Run:
        live, bound = job.live, job.bound
        job.refuse_what_cannot_be()
        with self._queue.place(live.ref.tenant) as place:
            async with AsyncExitStack() as arrival:
                if bound is None:
                    await arrival.enter_async_context(live.arrival)
                    if live.in_line:
                        # Durable before the wait. Who is alone accepts and begins in one write, arriving until then.
                        bound, known = await self._accept(job)
                        if known is not None:
                            return await self._begun_before(live.ref, _run_of(known))
                        await arrival.aclose()
                async with live.my_turn(), place.slot():
                    begun, head = await self._begin(job, bound)
                    await arrival.aclose()
                    if isinstance(begun, Begun):
                        return await self._cells.run(job, head, begun)
                    run_id = job.run_id if begun.index is None else await self._run_at(live.ref, begun.index)
                    return await self._begun_before(live.ref, run_id)

    async def _accept(self, job: Job) -> tuple[int, CellRecord | None]:
        """Index of the last cell that this run may run, and its own cell's record if that is no longer pending."""
        live = job.live
        if job.cell is None:
            bound = (await self._store.session(live.ref)).cells_total - 1
        else:
            accepted = await self._store.accept(live.owned, [job.cell], live.config.idle_ttl_s)
            index = accepted.indices[0]
            if index < accepted.cells_before:
                [record] = await self._store.cells(live.ref, [index])
                if record.cell.status != "pending":
                    return index, record
            bound = max(index, accepted.cells_before - 1)
        if job.events is not None:
            job.events.run(job.run_id)
        return bound, None

    async def _begin(self, job: Job, bound: int | None) -> tuple[Begun | Known, RunHead]:
        live = job.live
        if self.draining:
            raise Refusal("shutting_down")
        if job.gone:
            await self._withdraw(job, bound)
        await self._recovery.ensure_kernel(live)
        job.refuse_what_cannot_be()
        head = RunHead(
            run_id=job.run_id,
            generation=live.generation,
            queue_s=time.monotonic() - job.arrived,
            recovered=live.recovered,
        )

        async def begin() -> Begun | Known:
            ttl_s = live.config.idle_ttl_s
            return await self._store.begin(live.owned, head, ttl_s, bound=bound, cell=job.cell, atomic=job.atomic)

        # A queued run that may have begun is not left alone: no retry of its client's would find out.
        begun = await (begin() if job.bound is None else recorded(begin, job.answer))
        if isinstance(begun, Begun):
            live.recovered = False
        return begun, head

    async def _withdraw(self, job: Job, bound: int | None) -> None:
        """Nobody can hear of the run any more, and of its own cell nobody ever heard."""
        if job.cell is not None and bound is not None:
            await self._store.withdraw(job.live.owned, job.cell[0], job.live.config.idle_ttl_s)
        raise Refusal("cell_not_pending", "the client went away before the run began")

    async def _was_accepted(self, job: Job) -> bool:
        """By an earlier try of this request. If it is only queued, it is tried again."""
        if await self._store.is_queued(job.live.ref, job.run_id):
            await self.resume(job.live)
            return True
        return await self._store.has_run(job.live.ref, job.run_id)

    async def _run_at(self, ref: Ref, index: int) -> str:
        """The run that this cell was part of."""
        [record] = await self._store.cells(ref, [index])
        return _run_of(record)

    async def _begun_before(self, ref: Ref, run_id: str) -> Run:
        run = await self._earlier(ref, run_id)
        if run is None:
            raise Refusal("request_in_progress")
        return run

    async def _earlier(self, ref: Ref, run_id: str) -> Run | None:
        """A run that was begun before, from its record; None while it goes on. Raises `run_not_found`."""
        head, records = await self._store.run(ref, run_id)
        cells = [record.cell for record in records]
        if any(cell.status == "running" for cell in cells):
            return None
        return run_from(head, ref.session_id, cells, rolled_back=any(record.provisional for record in records))


def _job(
    live: LiveSession,
    request: RunRequest,
    ids: Ids,
    presence: Presence | None = None,
    events: RunEvents | None = None,
) -> Job:
    """Raises `limit_too_high`."""
    return Job(
        live=live,
        run_id=ids.run(),
        cell=None if request.code is None else (request.cell_id or ids.cell(0), request.code),
        timeout_s=timeout_within(live.config.limits, request.timeout_s),
        on_error=request.on_error,
        atomic=request.atomic,
        presence=presence,
        events=events,
    )


def _plan(job: Job) -> RunPlan:
    return RunPlan(
        run_id=job.run_id,
        cell_id=None if job.cell is None else job.cell[0],
        timeout_s=job.timeout_s,
        on_error=job.on_error,
        atomic=job.atomic,
    )


def _run_of(record: CellRecord) -> str:
    if record.run_id is None:
        raise Refusal("cell_not_pending", "the cell was withdrawn")
    return record.run_id


def _noted(job: Job, answer: asyncio.Future[Run]) -> None:
    """Perhaps nobody waits for a queued run."""
    if not answer.cancelled() and (error := answer.exception()) is not None:
        names = {"session_id": job.live.ref.session_id, "run_id": job.run_id}
        log.warning("a queued run was not begun: %s", error, extra=names)

"""Runs: a session's cells in their order of acceptance, one at a time, each outcome recorded before the next begins.

The way of a run: arrive (its cell is accepted, its place in line taken) -> its turn -> a dead kernel is rebuilt, where
the session allows it -> begin -> cell after cell -> an atomic run that failed is rolled back -> the `Run`.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from cellar_client.schemas import Cell, OnError, Run, RunRequest
from cellar_executor.admission import timeout_within
from cellar_executor.background import Background
from cellar_executor.durable import answered, recorded
from cellar_executor.errors import Refusal
from cellar_executor.ids import Ids, Ref
from cellar_executor.kernel import CellOutcome
from cellar_executor.records import Atomic, Begun, CellRecord, Known, RunHead, StartedCell
from cellar_executor.recovery import Recovery
from cellar_executor.runs import finished, run_from
from cellar_executor.sessions import LiveSession
from cellar_executor.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One run on its way."""

    live: LiveSession
    run_id: str
    cell: tuple[str, str] | None
    """Id and code of the run's own cell."""
    timeout_s: float
    on_error: OnError
    atomic: bool
    arrived: float
    answer: asyncio.Future[Run]


class Runner:
    def __init__(self, store: Store, recovery: Recovery, background: Background) -> None:
        self._store = store
        self._recovery = recovery
        self._background = background
        self.draining = False

    async def run(self, live: LiveSession, request: RunRequest, ids: Ids) -> Run:
        """Queue the request's code, if any, and run what is pending. Goes on to its end whatever becomes of the caller.

        Raises `limit_too_high`, `idempotency_mismatch`, `too_many_cells`, `request_in_progress`, `cell_not_pending`,
        `not_repeatable`, and what `Recovery.ensure_kernel` raises; `shutting_down`.
        """
        timeout_s = timeout_within(live.config.limits, request.timeout_s)

        def work(answer: asyncio.Future[Run]) -> Coroutine[Any, Any, Run]:
            return self._answer(
                Job(
                    live=live,
                    run_id=ids.run(),
                    cell=None if request.code is None else (request.cell_id or ids.cell(0), request.code),
                    timeout_s=timeout_s,
                    on_error=request.on_error,
                    atomic=request.atomic,
                    arrived=time.monotonic(),
                    answer=answer,
                )
            )

        return await answered(self._background, work)

    async def earlier(self, ref: Ref, run_id: str) -> Run | None:
        """A run that was begun before, from its record; None while it goes on. Raises `run_not_found`."""
        head, records = await self._store.run(ref, run_id)
        cells = [record.cell for record in records]
        if any(cell.status == "running" for cell in cells):
            return None
        return run_from(head, ref.session_id, cells, rolled_back=any(record.provisional for record in records))

    async def _answer(self, job: Job) -> Run:
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
        return await self._known(job, record)

    async def _take_turn(self, job: Job) -> Run:
        live = job.live
        _refuse_what_cannot_be(job)
        async with AsyncExitStack() as arrival:
            await arrival.enter_async_context(live.arrival)
            bound = None
            if live.in_line:
                # Durable before the wait. Who is alone accepts and begins in one write, and holds `arrival` until then.
                bound, known = await self._accept(job)
                if known is not None:
                    return await self._known(job, known)
                await arrival.aclose()
            async with live.my_turn():
                begun, head = await self._begin(job, bound)
                await arrival.aclose()
                if isinstance(begun, Begun):
                    return await self._run_cells(job, head, begun)
                if begun.index is None:
                    return await self._begun_before(live.ref, job.run_id)
                return await self._known(job, (await self._store.cells(live.ref, [begun.index]))[0])

    async def _accept(self, job: Job) -> tuple[int, CellRecord | None]:
        """Index of the last cell that this run may run, and its own cell's record if that is no longer pending."""
        live = job.live
        if job.cell is None:
            return (await self._store.session(live.ref)).cells_total - 1, None
        accepted = await self._store.accept(live.ref, [job.cell], live.config.idle_ttl_s)
        index = accepted.indices[0]
        if index < accepted.cells_before:
            record = (await self._store.cells(live.ref, [index]))[0]
            if record.cell.status != "pending":
                return index, record
        return max(index, accepted.cells_before - 1), None

    async def _begin(self, job: Job, bound: int | None) -> tuple[Begun | Known, RunHead]:
        live = job.live
        if self.draining:
            raise Refusal("shutting_down")
        await self._recovery.ensure_kernel(live)
        _refuse_what_cannot_be(job)
        head = RunHead(
            run_id=job.run_id,
            generation=live.generation,
            queue_s=time.monotonic() - job.arrived,
            recovered=live.recovered,
        )
        begun = await self._store.begin(
            live.ref, head, live.config.idle_ttl_s, bound=bound, cell=job.cell, atomic=job.atomic
        )
        if isinstance(begun, Begun):
            live.recovered = False
        return begun, head

    async def _known(self, job: Job, record: CellRecord) -> Run:
        """The run that the job's own cell was part of."""
        if record.run_id is None:
            raise Refusal("cell_not_pending", "the cell was withdrawn")
        return await self._begun_before(job.live.ref, record.run_id)

    async def _begun_before(self, ref: Ref, run_id: str) -> Run:
        run = await self.earlier(ref, run_id)
        if run is None:
            raise Refusal("request_in_progress")
        return run

    async def _run_cells(self, job: Job, head: RunHead, begun: Begun) -> Run:
        live = job.live
        cells: list[Cell] = []
        current = begun.first
        half_done = False
        while current is not None:
            cell = finished(current.cell_id, current.index, current.code, await self._run_cell(job, current))
            cells.append(cell)
            half_done |= live.alive and (live.interrupted or cell.status == "timeout")
            go_on = live.alive and (cell.status == "ok" or job.on_error == "continue")
            following = await self._record(job, head, begun, cells, go_on=go_on, half_done=half_done)
            if not go_on:
                cells += [Cell(cell_id=s.cell_id, index=s.index, code=s.code, status="skipped") for s in following]
            current = following[0] if go_on and following else None
        failed = job.atomic and any(cell.status != "ok" for cell in cells)
        if failed:
            await self._roll_back(job)
        else:
            live.unrepeatable |= half_done
            if live.kernel is not None and not live.alive:
                await live.kernel.close()
        return run_from(head, live.ref.session_id, cells, rolled_back=failed)

    async def _roll_back(self, job: Job) -> None:
        """The run's cells are left out of any replay since they began; now the kernel follows."""
        try:
            await self._recovery.roll_back(job.live, job.answer)
        except Refusal as refusal:
            # Without a kernel the session is lost, or rebuilt when it is next used, and says so; or it was deleted.
            names = {"session_id": job.live.ref.session_id, "run_id": job.run_id}
            log.warning("no kernel after a rollback: %s", refusal, extra=names)

    async def _run_cell(self, job: Job, cell: StartedCell) -> CellOutcome:
        kernel = job.live.kernel
        assert kernel is not None
        names = {"session_id": job.live.ref.session_id, "run_id": job.run_id, "cell_id": cell.cell_id}
        job.live.interrupted = False
        try:
            outcome = await kernel.run_cell(cell.code, timeout_s=job.timeout_s)
        except Exception:
            # A kernel that breaks its own protocol is not trusted with another cell, and this one is never run again.
            log.exception("kernel failed", extra=names)
            await kernel.close()
            outcome = CellOutcome("killed", "", "", None, None, 0.0, truncated=False)
        log.info("cell finished", extra={**names, "status": outcome.status, "duration_s": outcome.duration_s})
        return outcome

    async def _record(
        self, job: Job, head: RunHead, begun: Begun, cells: list[Cell], *, go_on: bool, half_done: bool
    ) -> list[StartedCell]:
        """Make the outcome of the last of `cells` durable, and have the next cell or those that are skipped."""
        live = job.live
        atomic = Atomic(first=cells[0].index, ok=all(cell.status == "ok" for cell in cells)) if job.atomic else None
        try:
            return await recorded(
                lambda: self._store.step(
                    live.ref,
                    head,
                    cells[-1],
                    begun.bound,
                    live.config.idle_ttl_s,
                    go_on=go_on,
                    repeatable=not (live.unrepeatable or half_done),
                    atomic=atomic,
                ),
                job.answer,
            )
        except Refusal as refusal:
            if refusal.code != "session_not_found":
                raise
            return []  # deleted meanwhile: the client still learns what became of its cell


def _refuse_what_cannot_be(job: Job) -> None:
    job.live.refuse_if_lost()
    if job.atomic and job.live.unrepeatable:
        raise Refusal("not_repeatable", "a failed run could not be rolled back: a cell was stopped half-way before")

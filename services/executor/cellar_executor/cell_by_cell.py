"""The cells of a run that has begun: one at a time, each outcome recorded before the next begins."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from cellar_client.schemas import Cell, Run
from cellar_executor.durable import recorded
from cellar_executor.errors import Refusal
from cellar_executor.jobs import Job
from cellar_executor.kernel import CellOutcome
from cellar_executor.records import Atomic, Begun, RunHead, StartedCell
from cellar_executor.recovery import Recovery
from cellar_executor.runs import finished, run_from
from cellar_executor.store import Store
from cellar_executor.telemetry import metrics, tracing

T = TypeVar("T")

KILLED = CellOutcome("killed", "", "", None, None, 0.0, truncated=False)

log = logging.getLogger(__name__)


class CellByCell:
    def __init__(self, store: Store, recovery: Recovery) -> None:
        self._store = store
        self._recovery = recovery

    async def run(self, job: Job, head: RunHead, begun: Begun) -> Run:
        """All of the run, for whoever has the session's turn. The rest is skipped once nobody can hear of it."""
        live = job.live
        metrics.run_begun(head.queue_s)
        cells: list[Cell] = []
        current = begun.first
        half_done = False
        if job.events is not None:
            job.events.run(job.run_id)
        while current is not None:
            cell = finished(current.cell_id, current.index, current.code, await self._run_cell(job, current))
            cells.append(cell)
            half_done |= live.alive and (live.interrupted or cell.status == "timeout")
            go_on = live.alive and not job.gone and (cell.status == "ok" or job.on_error == "continue")
            following = await self._record(job, head, begun, cells, go_on=go_on, half_done=half_done)
            if job.events is not None:
                job.events.cell(cell)
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
        if live.lost:
            await self._in_log(lambda: self._store.mark_lost(live.owned), job)
        run = run_from(head, live.ref.session_id, cells, rolled_back=failed)
        metrics.run_ended(run, session_lost=live.lost)
        return run

    async def _roll_back(self, job: Job) -> None:
        """The run's cells are left out of any replay since they began; now the kernel follows."""
        try:
            await self._recovery.roll_back(job.live, job.answer)
        except Refusal as refusal:
            # Without a kernel the session is lost, or rebuilt when it is next used, and says so; or it was deleted.
            names = {"session_id": job.live.ref.session_id, "run_id": job.run_id}
            log.warning("no kernel after a rollback: %s", refusal, extra=names)

    async def _run_cell(self, job: Job, cell: StartedCell) -> CellOutcome:
        kernel, events = job.live.kernel, job.events
        assert kernel is not None
        job.live.interrupted = False
        if job.gone:  # it never reaches the kernel, which lives on
            return KILLED
        if events is not None:
            events.cell_started(cell.cell_id, cell.index)
        on_output = None if events is None else partial(events.output, cell.cell_id)
        names = {"session_id": job.live.ref.session_id, "run_id": job.run_id, "cell_id": cell.cell_id}
        try:
            with job.interrupted_when_gone(), tracing.span("cell", names):
                outcome = await kernel.run_cell(cell.code, timeout_s=job.timeout_s, on_output=on_output)
        except Exception:
            # A kernel that breaks its own protocol is not trusted with another cell, and this one is never run again.
            log.exception("kernel failed", extra=names)
            await kernel.close()
            outcome = KILLED
        log.info("cell finished", extra={**names, "status": outcome.status, "duration_s": outcome.duration_s})
        return outcome

    async def _record(
        self, job: Job, head: RunHead, begun: Begun, cells: list[Cell], *, go_on: bool, half_done: bool
    ) -> list[StartedCell]:
        """Make the outcome of the last of `cells` durable, and have the next cell or those that are skipped."""
        live = job.live
        atomic = Atomic(first=cells[0].index, ok=all(cell.status == "ok" for cell in cells)) if job.atomic else None
        following = await self._in_log(
            lambda: self._store.step(
                live.owned,
                head,
                cells[-1],
                begun.bound,
                live.config.idle_ttl_s,
                go_on=go_on,
                repeatable=not (live.unrepeatable or half_done),
                atomic=atomic,
            ),
            job,
        )
        return following or []

    async def _in_log(self, write: Callable[[], Awaitable[T]], job: Job) -> T | None:
        """None when the session was deleted meanwhile: the client still learns what became of its cell."""
        try:
            return await recorded(write, job.answer)
        except Refusal as refusal:
            if refusal.code != "session_not_found":
                raise
            return None

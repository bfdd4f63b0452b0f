"""Cells and runs: accepted, started, finished, found again."""

from collections.abc import Sequence
from typing import Any

from cellar_client.schemas import Cell
from cellar_executor.errors import Refusal
from cellar_executor.ids import Owned, Ref
from cellar_executor.records import (
    OUTCOME,
    Accepted,
    Atomic,
    Begun,
    CellRecord,
    Known,
    QueuedRun,
    RunHead,
    RunPlan,
    StartedCell,
    cell_record,
)
from cellar_executor.store.connection import answered, from_now
from cellar_executor.store.sessions import SessionRecords


class CellLog(SessionRecords):
    async def accept(self, owned: Owned, cells: Sequence[tuple[str, str]], idle_ttl_s: float) -> Accepted:
        """Append cells (id, code) to the log, all or none; cells that are there already are found.

        Raises `session_not_found`, `idempotency_mismatch`, `too_many_cells`.
        """
        quotas = self._quotas
        flat = [part for cell in cells for part in cell]
        reply = await self._script(
            "accept", owned, from_now(idle_ttl_s), quotas.max_pending_cells, quotas.max_log_bytes, *flat
        )
        return Accepted(indices=reply[2], cells_before=reply[1])

    async def begin(
        self,
        owned: Owned,
        head: RunHead,
        idle_ttl_s: float,
        *,
        bound: int | None,
        cell: tuple[str, str] | None,
        atomic: bool = False,
    ) -> Begun | Known:
        """Begin a run over what is pending up to index `bound`, its own `cell` (id, code) being accepted first.

        `bound` None means all there is. Whoever calls has the session's turn. Raises as `accept` does.
        """
        quotas = self._quotas
        reply = await self._script(
            "begin",
            owned,
            from_now(idle_ttl_s),
            head.run_id,
            head.model_dump_json(),
            "" if bound is None else bound,
            head.generation,
            quotas.max_pending_cells,
            quotas.max_log_bytes,
            "atomic" if atomic else "",
            *(cell or ()),
        )
        if reply[0] == "begun":
            return Begun(bound=reply[1], first=next(iter(_started(reply[2:])), None))
        return Known(index=reply[1] if reply[0] == "existing" else None)

    async def step(
        self,
        owned: Owned,
        head: RunHead,
        cell: Cell,
        bound: int,
        idle_ttl_s: float,
        *,
        go_on: bool,
        repeatable: bool = True,
        atomic: Atomic | None = None,
    ) -> list[StartedCell]:
        """Finish `cell`; then start the next cell of the run (`go_on`), or skip all that are left. Safe to repeat.

        `repeatable` False: the kernel lives on with state that running the cell again would not give.
        `atomic`: the run counts only if all its cells are ok; until then none of them is ever played again.
        Returns the started cell (or none), or the skipped ones. Raises `session_not_found`.
        """
        reply = await self._script(
            "step",
            owned,
            from_now(idle_ttl_s),
            cell.index,
            head.run_id,
            cell.status,
            cell.model_dump_json(include=OUTCOME),
            head.generation,
            bound,
            "next" if go_on else "skip",
            "repeatable" if repeatable else "unrepeatable",
            "" if atomic is None else atomic.first,
            "ok" if atomic is not None and atomic.ok else "",
        )
        return _started(reply[1:])

    async def withdraw(self, owned: Owned, cell_id: str, idle_ttl_s: float) -> CellRecord:
        """Raises `session_not_found`, `cell_not_found`, `cell_not_pending`."""
        reply = await self._script("withdraw", owned, from_now(idle_ttl_s), cell_id)
        return (await self.cells(owned.ref, [reply[1]]))[0]

    async def cell(self, ref: Ref, cell_id: str) -> CellRecord:
        record = await self.find_cell(ref, cell_id)
        if record is None:
            raise Refusal("cell_not_found")
        return record

    async def find_cell(self, ref: Ref, cell_id: str) -> CellRecord | None:
        index = await answered(self._redis.hget(f"cellar:ids:{ref}", cell_id))
        return None if index is None else (await self.cells(ref, [int(index)]))[0]

    async def cells(self, ref: Ref, indices: Sequence[int]) -> list[CellRecord]:
        """Cells by index. Raises `session_not_found` when the session is deleted meanwhile."""
        async with self._redis.pipeline() as pipe:
            for index in indices:
                pipe.hgetall(f"cellar:cell:{ref}:{index}")
            rows = await answered(pipe.execute())
        if not all(rows):
            raise Refusal("session_not_found")
        return [cell_record(index, row) for index, row in zip(indices, rows, strict=True)]

    async def enqueue(
        self, owned: Owned, plan: RunPlan, idle_ttl_s: float, *, cell: tuple[str, str] | None
    ) -> QueuedRun | Known:
        """Accept a run that is to begin later, and its own `cell` (id, code). `begin` takes it off the queue.

        Whoever calls holds the session's `arrival`. Raises as `accept` does.
        """
        quotas = self._quotas
        reply = await self._script(
            "enqueue",
            owned,
            from_now(idle_ttl_s),
            plan.run_id,
            plan.model_dump_json(),
            quotas.max_pending_cells,
            quotas.max_log_bytes,
            *(cell or ()),
        )
        if reply[0] == "queued":
            return QueuedRun.model_validate_json(reply[1])
        return Known(index=reply[1] if reply[0] == "existing" else None)

    async def queued_runs(self, ref: Ref) -> list[tuple[QueuedRun, str]]:
        """The runs that were accepted and not begun, in this order, each with the code of its own cell."""
        rows = await answered(self._redis.hvals(f"cellar:queued:{ref}"))
        runs = sorted((QueuedRun.model_validate_json(row) for row in rows), key=lambda run: run.order)
        return [(run, await self._code(ref, run.cell_id)) for run in runs]

    async def is_queued(self, ref: Ref, run_id: str) -> bool:
        return bool(await answered(self._redis.hexists(f"cellar:queued:{ref}", run_id)))

    async def _code(self, ref: Ref, cell_id: str | None) -> str:
        record = None if cell_id is None else await self.find_cell(ref, cell_id)
        return "" if record is None else record.cell.code or ""

    async def has_run(self, ref: Ref, run_id: str) -> bool:
        return bool(await answered(self._redis.hexists(f"cellar:runs:{ref}", run_id)))

    async def run(self, ref: Ref, run_id: str) -> tuple[RunHead, list[CellRecord]]:
        """A run's head and cells. Raises `session_not_found`, `run_not_found`."""
        record = await self.session(ref)
        head = await answered(self._redis.hget(f"cellar:runs:{ref}", run_id))
        if head is None:
            raise Refusal("run_not_found")
        cells = await self.cells(ref, range(record.cells_total))
        return RunHead.model_validate_json(head), [cell for cell in cells if cell.run_id == run_id]


def _started(flat: Sequence[Any]) -> list[StartedCell]:
    return [StartedCell(*flat[i : i + 3]) for i in range(0, len(flat), 3)]

"""A session's log, played again in a fresh kernel: what recovery, isolated forks and the rollback of a run are made of.

Cells that finished (`ok` or `error`) are run again, and the changes of files made again in their places among them.
Left out are cells from before the last reset, those that took their kernel along, those whose server died under them,
and those of atomic runs that did not end well. What the log does not fix (the time, unseeded draws) may come out
otherwise; where that makes a cell end otherwise, the replay fails.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cellar_client.schemas import Limits
from cellar_executor.ids import Ref
from cellar_executor.kernel import Kernel, KernelFileError, KernelUnavailable
from cellar_executor.records import CellRecord, FileChange
from cellar_executor.runs import FINISHED
from cellar_executor.store import Store


@dataclass(frozen=True, slots=True)
class Log:
    """What is played again of a session, in order."""

    ref: Ref
    limits: Limits
    steps: Sequence[CellRecord | FileChange]


class Replay:
    def __init__(self, store: Store, *, timeout_s: float) -> None:
        self._store = store
        self._timeout_s = timeout_s

    async def log(self, ref: Ref) -> Log:
        """As it stands now, for whoever has the session's turn. Raises `session_not_found`."""
        session = await self._store.session(ref)
        cells = await self._store.cells(ref, range(session.cells_total))
        repeatable = [cell for cell in cells if _is_played(cell, session.base_generation)]
        changes = await self._store.file_changes(ref)
        return Log(ref, session.config.limits, sorted([*changes, *repeatable], key=_place))

    async def play(self, log: Log, kernel: Kernel) -> bool:
        """False when a step ends otherwise than it did, or all together take too long: the kernel is of no use then."""
        deadline = time.monotonic() + self._timeout_s
        for step in log.steps:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not await self._play(log, step, kernel, left_s):
                return False
        return True

    async def _play(self, log: Log, step: CellRecord | FileChange, kernel: Kernel, left_s: float) -> bool:
        if isinstance(step, CellRecord):
            timeout_s = min(log.limits.cell_timeout_s, left_s)
            outcome = await kernel.run_cell(step.cell.code or "", timeout_s=timeout_s)
            return outcome.status == step.cell.status
        try:
            if step.deletes:
                await kernel.delete_file(step.path)
            else:
                await kernel.put_file(step.path, await self._store.file_data(log.ref, step.number))
        except (KernelFileError, KernelUnavailable):
            return False
        return True


def _is_played(record: CellRecord, base_generation: int) -> bool:
    since_reset = (record.generation or 0) >= base_generation
    return record.cell.status in FINISHED and since_reset and not record.provisional


def _place(step: CellRecord | FileChange) -> tuple[int, int, int]:
    if isinstance(step, CellRecord):
        return step.cell.index, 1, 0
    return step.before, 0, step.number

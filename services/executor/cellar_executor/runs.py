"""What a run amounts to, derived from its cells: pure functions."""

from collections.abc import Sequence
from typing import cast

from cellar_client.schemas import Cell, Run, RunStatus
from cellar_executor.kernel import CellOutcome
from cellar_executor.records import RunHead

FINISHED = ("ok", "error")


def run_from(head: RunHead, session_id: str, cells: Sequence[Cell], *, rolled_back: bool = False) -> Run:
    """The run with this head and these cells, in order: its status is that of the first cell that is not ok.

    If that one was skipped, no cell failed: the kernel died behind a cell that was done.
    """
    failed = next((cell for cell in cells if cell.status != "ok"), None)
    return Run(
        run_id=head.run_id,
        session_id=session_id,
        generation=head.generation,
        status="ok" if failed is None else "killed" if failed.status == "skipped" else cast(RunStatus, failed.status),
        cells=list(cells),
        stdout="".join(cell.stdout for cell in cells),
        stderr="".join(cell.stderr for cell in cells),
        result=cells[-1].result if cells else None,
        error=failed.error if failed else None,
        truncated=any(cell.truncated for cell in cells),
        duration_s=sum(cell.duration_s or 0.0 for cell in cells),
        queue_s=head.queue_s,
        recovered=head.recovered,
        rolled_back=rolled_back,
    )


def finished(cell_id: str, index: int, code: str, outcome: CellOutcome) -> Cell:
    return Cell(
        cell_id=cell_id,
        index=index,
        code=code,
        status=outcome.status,
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        result=outcome.result,
        error=outcome.error,
        duration_s=outcome.duration_s,
        cpu_s=outcome.cpu_s,
        peak_memory_bytes=outcome.peak_memory_bytes,
        truncated=outcome.truncated,
    )

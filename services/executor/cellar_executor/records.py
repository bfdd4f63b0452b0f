"""What the store takes and gives: values, and how they stand in Redis."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, JsonValue

from cellar_client.schemas import Cell, CellStatus, Limits, OnError, Recovery, Tier
from cellar_executor.ids import Ref

OUTCOME = {
    *("stdout", "stderr", "result", "error", "truncated"),
    *("duration_s", "cpu_s", "peak_memory_bytes"),
}
"""What a cell has once it ran: kept as one JSON text. Outcomes of earlier versions lack some of it."""


class SessionConfig(BaseModel):
    """What a session was created with; never changes."""

    model_config = ConfigDict(frozen=True)

    runtime: str
    isolation: Tier | Literal["none"] = "none"
    """At least this, whatever the server's own is by now. Sessions of earlier versions promised nothing."""
    limits: Limits
    recovery: Recovery
    idle_ttl_s: float
    seed: int | None
    metadata: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class SessionRecord:
    ref: Ref
    config: SessionConfig
    owner: str
    """Server that holds it, or held it last; "" when it was given up."""
    epoch: int
    """One more each time another server took it over: the fencing token."""
    generation: int
    base_generation: int
    created_at: float
    expires_at: float
    cells_total: int
    cells_pending: int
    running: bool
    """A cell was running, by the log."""
    unrepeatable: bool
    """Its state cannot be rebuilt once its kernel is dead, until a reset."""
    lost: bool
    """By the log: its owner may know that its kernel has died since."""


@dataclass(frozen=True, slots=True)
class CellRecord:
    cell: Cell
    run_id: str | None
    generation: int | None
    provisional: bool
    """Its run is atomic and has not ended well (yet)."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """One change of a file in a session's log; `store.file_data` has what was put."""

    number: int
    path: str
    deletes: bool
    before: int
    """Index of the first cell that may see it."""


@dataclass(frozen=True, slots=True)
class StartedCell:
    index: int
    cell_id: str
    code: str


class RunHead(BaseModel):
    """What a run has beside its cells."""

    run_id: str
    generation: int
    queue_s: float
    recovered: bool


class RunPlan(BaseModel):
    """What a run asks that was accepted before its turn: enough to begin it, also by another server."""

    run_id: str
    cell_id: str | None
    """Of its own cell."""
    timeout_s: float
    on_error: OnError
    atomic: bool


class QueuedRun(RunPlan):
    order: int
    """Among the session's queued runs."""
    bound: int
    """Index of the last cell that it may run."""


@dataclass(frozen=True, slots=True)
class Atomic:
    """How an atomic run stands when one of its cells has finished."""

    first: int
    """Index of its first cell."""
    ok: bool
    """All its cells were, so far."""


@dataclass(frozen=True, slots=True)
class Accepted:
    indices: list[int]
    cells_before: int


@dataclass(frozen=True, slots=True)
class Begun:
    bound: int
    """Index of the last cell that belongs to the run, if it was pending."""
    first: StartedCell | None


@dataclass(frozen=True, slots=True)
class Known:
    """The run was begun before (a retry), or its own cell was: `index`."""

    index: int | None


@dataclass(frozen=True, slots=True)
class Claim:
    kind: Literal["first", "in_progress", "unanswered", "answered"]
    nonce: str = ""
    status: int = 0
    body: str = ""


@dataclass(frozen=True, slots=True)
class Quotas:
    max_pending_cells: int
    max_log_bytes: int
    answer_ttl_s: int


def session_record(ref: Ref, row: Mapping[str, str], pending: int) -> SessionRecord:
    return SessionRecord(
        ref=ref,
        config=SessionConfig.model_validate_json(row["config"]),
        owner=row.get("owner", ""),
        epoch=int(row.get("epoch", 0)),
        generation=int(row["generation"]),
        base_generation=int(row["base"]),
        created_at=float(row["created_at"]),
        expires_at=float(row["expires_at"]),
        cells_total=int(row["cells"]),
        cells_pending=pending,
        running="running" in row,
        unrepeatable="unrepeatable" in row,
        lost="lost" in row,
    )


def cell_record(index: int, row: Mapping[str, str]) -> CellRecord:
    status = cast(CellStatus, row["status"])
    outcome = json.loads(row.get("outcome", "{}"))
    generation = row.get("generation")
    return CellRecord(
        cell=Cell(cell_id=row["cell_id"], index=index, status=status, code=row["code"], **outcome),
        run_id=row.get("run_id"),
        generation=None if generation is None else int(generation),
        provisional="provisional" in row,
    )

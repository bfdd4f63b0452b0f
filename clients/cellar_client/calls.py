"""Every call of the contract, as a function that returns an `Operation`. The clients turn them into methods.

Each of them raises `pydantic.ValidationError`, before anything is sent, for arguments that cannot be of the contract.
"""

from base64 import b64encode
from collections.abc import Mapping

from pydantic import JsonValue, TypeAdapter

from cellar_client.operation import Operation
from cellar_client.schemas import (
    Cell,
    Cells,
    CreateSession,
    ExecuteRequest,
    Health,
    Identifier,
    Info,
    LimitsRequest,
    NewCell,
    OnError,
    QueueCells,
    Readiness,
    Recovery,
    Run,
    RunRequest,
    Session,
    SessionPage,
)

RUN_SILENCE_S = 60.0
"""Added to a cell's time limit: how long a run may be silent before the client asks again.

The client cannot know how long a run takes: many cells may be pending, and other runs may be before it. So it does not
wait for ever on one connection, where it would never learn that the server is gone. It asks again under the same
`Idempotency-Key`, is told `request_in_progress` while the run goes on (see `Retries.in_progress_s`), and gets the
stored run when it is done.
"""

_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)

AnyLimits = LimitsRequest | Mapping[str, float] | None


# --- sessions -----------------------------------------------------------------------------------


def create_session(
    *,
    recovery: Recovery = "fail",
    limits: AnyLimits = None,
    seed: int | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    idle_ttl_s: float | None = None,
    runtime: str = "python",
    session_id: str | None = None,
) -> Operation[Session]:
    """A new session.

    Args:
        recovery: `fail`: a session whose kernel died is lost. `replay`: its finished cells are run again.
        limits: what to lower of the server's limits, for instance `{"memory_mb": 256}`.
        seed: seeds `random`, numpy and sympy of the session.
        metadata: kept with the session and given back.
        idle_ttl_s: seconds without a call after which the server deletes the session.
        runtime: the Python environment that cells see, one of `info().runtimes`.
        session_id: an id of your own; `SessionExists` when it was ever used.
    """
    body = CreateSession(
        session_id=session_id,
        runtime=runtime,
        limits=_limits(limits),
        idle_ttl_s=idle_ttl_s,
        recovery=recovery,
        seed=seed,
        metadata=dict(metadata or {}),
    )
    return Operation("POST", "/v1/sessions", Session.model_validate_json, body)


def sessions_page(cursor: str | None, page_size: int) -> Operation[SessionPage]:
    query = {"limit": str(page_size)} | ({} if cursor is None else {"cursor": cursor})
    return Operation("GET", "/v1/sessions", SessionPage.model_validate_json, query=query)


def session_info(session_id: str) -> Operation[Session]:
    """The session as the server sees it now."""
    return Operation("GET", _path(session_id), Session.model_validate_json)


def delete_session(session_id: str) -> Operation[None]:
    """Delete a session; no error when it is gone already."""
    return Operation("DELETE", _path(session_id), _nothing)


def reset(session_id: str) -> Operation[Session]:
    """A fresh namespace and work directory for the session; generation + 1."""
    return Operation("POST", f"{_path(session_id)}/reset", Session.model_validate_json)


def interrupt(session_id: str) -> Operation[None]:
    """KeyboardInterrupt in the cell that runs now; nothing when none does."""
    return Operation("POST", f"{_path(session_id)}/interrupt", _nothing)


# --- cells and runs -----------------------------------------------------------------------------


def queue(session_id: str, code: str, *, cell_id: str | None = None) -> Operation[Cell]:
    """Give the session a cell that waits, durable and not run, until a run asks for it."""
    body = QueueCells(code=code, cell_id=cell_id)
    return Operation("POST", f"{_path(session_id)}/cells", _the_one_cell, body)


def queue_all(session_id: str, codes: list[str]) -> Operation[list[Cell]]:
    """Queue several cells (1 to 1000), in this order: all are accepted, or none."""
    body = QueueCells(cells=[NewCell(code=code) for code in codes])
    return Operation("POST", f"{_path(session_id)}/cells", _cells, body)


def run(
    session_id: str,
    code: str | None = None,
    *,
    cell_id: str | None = None,
    timeout_s: float | None = None,
    on_error: OnError = "stop",
    atomic: bool = False,
) -> Operation[Run]:
    """Run everything pending, in order, after queueing `code` if it is given. A cell that fails is a result.

    Args:
        cell_id: an id of your own for the cell made of `code`.
        timeout_s: wall-clock limit of each cell, from the moment it starts; the session's when left out.
        on_error: `stop` skips the cells after one that fails, `continue` runs them.
        atomic: a run that fails leaves the session as it was before.
    """
    body = RunRequest(code=code, cell_id=cell_id, timeout_s=timeout_s, on_error=on_error, atomic=atomic)
    return Operation("POST", f"{_path(session_id)}/run", Run.model_validate_json, body, silence_s=_silence_s(timeout_s))


def cells(session_id: str) -> Operation[list[Cell]]:
    """All cells of the session, in the order in which they were accepted."""
    return Operation("GET", f"{_path(session_id)}/cells", _cells)


def cell(session_id: str, cell_id: str) -> Operation[Cell]:
    return Operation("GET", _path(session_id, cell_id), Cell.model_validate_json)


def withdraw(session_id: str, cell_id: str) -> Operation[Cell]:
    """Take a pending cell back, so that it never runs; `CellNotPending` once it ran."""
    return Operation("DELETE", _path(session_id, cell_id), Cell.model_validate_json)


def execute(
    code: str,
    *,
    stdin: str = "",
    timeout_s: float | None = None,
    files: Mapping[str, bytes] | None = None,
    limits: AnyLimits = None,
    seed: int | None = None,
    runtime: str = "python",
) -> Operation[Run]:
    """Run one cell in a fresh session that is then gone. A cell that fails is a result.

    Args:
        stdin: what the cell reads from standard input.
        timeout_s: wall-clock limit of the cell; the server's when left out.
        files: relative path -> bytes, put into the work directory first.
        limits, seed, runtime: as for a session.
    """
    body = ExecuteRequest(
        code=code,
        stdin=stdin,
        runtime=runtime,
        timeout_s=timeout_s,
        limits=_limits(limits),
        files={path: b64encode(data).decode() for path, data in (files or {}).items()},
        seed=seed,
    )
    return Operation("POST", "/v1/execute", Run.model_validate_json, body, silence_s=_silence_s(timeout_s))


# --- the server about itself --------------------------------------------------------------------


def info() -> Operation[Info]:
    """Version, isolation in force, limits and runtimes of the server."""
    return Operation("GET", "/v1/info", Info.model_validate_json)


def health() -> Operation[Health]:
    """Whether the server lives."""
    return Operation("GET", "/healthz", Health.model_validate_json)


def readiness() -> Operation[Readiness]:
    """Whether the server can take sessions now, and what is missing if not (no error then)."""
    return Operation("GET", "/readyz", Readiness.model_validate_json, also_good=503)


def _path(session_id: str, cell_id: str | None = None) -> str:
    """Checked ids only: one like `..` would lead to another route."""
    session = f"/v1/sessions/{_IDENTIFIER.validate_python(session_id)}"
    return session if cell_id is None else f"{session}/cells/{_IDENTIFIER.validate_python(cell_id)}"


def _limits(limits: AnyLimits) -> LimitsRequest:
    return LimitsRequest.model_validate(limits or {})


def _silence_s(timeout_s: float | None) -> float:
    return RUN_SILENCE_S + (timeout_s or 0.0)


def _cells(content: bytes) -> list[Cell]:
    return Cells.model_validate_json(content).cells


def _the_one_cell(content: bytes) -> Cell:
    (cell,) = _cells(content)
    return cell


def _nothing(content: bytes) -> None:
    """Some replies have no body worth reading."""

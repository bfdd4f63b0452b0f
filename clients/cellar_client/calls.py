"""Every call of the contract, as a function that returns an `Operation`. The clients turn them into methods.

Each of them raises `pydantic.ValidationError`, before anything is sent, for arguments that cannot be of the contract.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, Field, JsonValue, TypeAdapter
from pydantic_core import to_json

from cellar_client.errors import CellarError
from cellar_client.operation import Operation, T
from cellar_client.schemas import (
    BatchReply,
    BatchRequest,
    Cell,
    Cells,
    CreateSession,
    ExecuteRequest,
    Files,
    ForkRequest,
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
    RunAccepted,
    RunRequest,
    Session,
    SessionPage,
    Sessions,
    Tier,
    Trust,
)

RUN_SILENCE_S = 60.0
"""Added to a cell's time limit: how long a run may be silent before the client asks again.

The client cannot know how long a run takes: many cells may be pending, and other runs may be before it. So it does not
wait for ever on one connection, where it would never learn that the server is gone. It asks again under the same
`Idempotency-Key`, is told `request_in_progress` while the run goes on (see `Retries.in_progress_s`), and gets the
stored run when it is done.
"""

STREAM_SILENCE_S = 45.0
"""Three times the pause after which the server of a stream says that it is still there."""
POLL_S, POLL_SILENCE_S, POLL_PAUSE_S = 30.0, 30.0, 0.25
"""How long a request for a run waits for its end, how much longer the server may be silent, and the pause after it."""

BATCH_SIZE = 1000
"""Most operations that the server takes in one batch; the clients cut longer ones."""


def _plain(path: str) -> str:
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("a file's path is relative, without empty parts, `.` or `..`")
    return path


_RUN_OR_ACCEPTED: TypeAdapter[Run | RunAccepted] = TypeAdapter(
    Annotated[Run | RunAccepted, Field(union_mode="left_to_right")]
)
_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)
_FILE_PATH: TypeAdapter[str] = TypeAdapter(Annotated[str, AfterValidator(_plain)])

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
    isolation: Tier | None = None,
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
        isolation: `strict` for a jail of its own; the server's own tier when left out (`IsolationUnavailable` when
            that one is stronger than what is asked for).
        session_id: an id of your own; `SessionExists` when it was ever used.
    """
    body = CreateSession(
        session_id=session_id,
        runtime=runtime,
        isolation=isolation,
        limits=_limits(limits),
        idle_ttl_s=idle_ttl_s,
        recovery=recovery,
        seed=seed,
        metadata=dict(metadata or {}),
    )
    return Operation("POST", "/v1/sessions", Session.model_validate_json, body, batched={"op": "create"})


def sessions_page(cursor: str | None, page_size: int) -> Operation[SessionPage]:
    query = {"limit": str(page_size)} | ({} if cursor is None else {"cursor": cursor})
    return Operation("GET", "/v1/sessions", SessionPage.model_validate_json, query=query)


def session_info(session_id: str) -> Operation[Session]:
    """The session as the server sees it now."""
    return Operation("GET", _path(session_id), Session.model_validate_json)


def delete_session(session_id: str) -> Operation[None]:
    """Delete a session; no error when it is gone already."""
    return Operation("DELETE", _path(session_id), _nothing, batched=_entry("delete", session_id))


def reset(session_id: str) -> Operation[Session]:
    """A fresh namespace and work directory for the session; generation + 1."""
    return Operation("POST", f"{_path(session_id)}/reset", Session.model_validate_json)


def interrupt(session_id: str) -> Operation[None]:
    """KeyboardInterrupt in the cell that runs now; nothing when none does."""
    return Operation("POST", f"{_path(session_id)}/interrupt", _nothing)


def fork(
    session_id: str,
    count: int | None = None,
    *,
    session_ids: Sequence[str] | None = None,
    trust: Trust = "isolated",
) -> Operation[list[Session]]:
    """Copies of the session at this point: its namespace, its files and its cells.

    Args:
        count: how many (1 to 256); as many as `session_ids`, else one, when left out.
        session_ids: ids of your own for the copies, which come back in this order.
        trust: `isolated`: the copies are as apart from their origin as any two sessions, its cells are run again for
            each (`NotRepeatable` when that cannot be done). `shared`: live copies in the origin's jail, at once, for
            code that may see its siblings.
    """
    body = ForkRequest(count=count, session_ids=None if session_ids is None else list(session_ids), trust=trust)
    return Operation("POST", f"{_path(session_id)}/fork", _sessions, body, silence_s=RUN_SILENCE_S)


# --- files --------------------------------------------------------------------------------------


def put_file(session_id: str, path: str, content: bytes) -> Operation[None]:
    """Write a file of the session's work directory, whole, with the directories above it.

    Raises `InvalidPath` for what is no plain relative path to a regular file and when the session's disk is full,
    `BodyTooLarge`.
    """
    return Operation("PUT", _file_path(session_id, path), _nothing, content)


def get_file(session_id: str, path: str) -> Operation[bytes]:
    """A file of the session's work directory. Raises `FileNotFound`, `FileTooLarge`, `InvalidPath`."""
    return Operation("GET", _file_path(session_id, path), bytes)


def files(session_id: str) -> Operation[Files]:
    """The regular files of the session's work directory."""
    return Operation("GET", f"{_path(session_id)}/files", Files.model_validate_json)


def delete_file(session_id: str, path: str) -> Operation[None]:
    """Delete a file of the session's work directory. Raises `FileNotFound`, `InvalidPath`."""
    return Operation("DELETE", _file_path(session_id, path), _nothing)


# --- cells and runs -----------------------------------------------------------------------------


def queue(session_id: str, code: str, *, cell_id: str | None = None) -> Operation[Cell]:
    """Give the session a cell that waits, durable and not run, until a run asks for it."""
    body = QueueCells(code=code, cell_id=cell_id)
    return Operation("POST", f"{_path(session_id)}/cells", _the_one_cell, body, batched=_entry("queue", session_id))


def queue_all(session_id: str, codes: list[str]) -> Operation[list[Cell]]:
    """Queue several cells (1 to 1000), in this order: all are accepted, or none."""
    body = QueueCells(cells=[NewCell(code=code) for code in codes])
    return Operation("POST", f"{_path(session_id)}/cells", _cells, body, batched=_entry("queue", session_id))


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
        atomic: a run that fails leaves the session as it was before (`rolled_back`); `NotRepeatable` where that
            cannot be done.
    """
    body = RunRequest(code=code, cell_id=cell_id, timeout_s=timeout_s, on_error=on_error, atomic=atomic)
    return Operation(
        "POST",
        f"{_path(session_id)}/run",
        Run.model_validate_json,
        body,
        silence_s=_silence_s(timeout_s),
        batched=_entry("run", session_id),
    )


def run_async(
    session_id: str,
    code: str | None = None,
    *,
    cell_id: str | None = None,
    timeout_s: float | None = None,
    on_error: OnError = "stop",
    atomic: bool = False,
) -> Operation[RunAccepted]:
    """As `run`, but answered as soon as the run is durable: it is done once, whatever becomes of client and server."""
    body = RunRequest(code=code, cell_id=cell_id, timeout_s=timeout_s, on_error=on_error, atomic=atomic)
    headers = {"Prefer": "respond-async"}
    return Operation("POST", f"{_path(session_id)}/run", RunAccepted.model_validate_json, body, headers=headers)


def find_run(session_id: str, run_id: str, wait_s: float = 0.0) -> Operation[Run | None]:
    """A run by its id; None if it goes on for longer than `wait_s` (at most 60)."""
    path = f"{_path(session_id)}/runs/{_IDENTIFIER.validate_python(run_id)}"
    return Operation("GET", path, _run_if_ended, query={"wait_s": str(wait_s)}, silence_s=wait_s + POLL_SILENCE_S)


def stream_run(
    session_id: str,
    code: str | None = None,
    *,
    cell_id: str | None = None,
    timeout_s: float | None = None,
    on_error: OnError = "stop",
    atomic: bool = False,
) -> Operation[Run]:
    """As `run`, told as it goes: `RunAccepted`, for each cell `CellStarted`, `CellOutput` and `Cell`, then the `Run`.

    When the connection breaks the run goes on, and what is told continues with its end. Leave off early with
    `contextlib.closing` (`aclosing`) around the events: the run goes on then, too.
    """
    operation = run(session_id, code, cell_id=cell_id, timeout_s=timeout_s, on_error=on_error, atomic=atomic)
    return replace(operation, query={"stream": "true"}, silence_s=STREAM_SILENCE_S, batched=None)


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
    isolation: Tier | None = None,
) -> Operation[Run]:
    """Run one cell in a fresh session that is then gone. A cell that fails is a result.

    Args:
        stdin: what the cell reads from standard input.
        timeout_s: wall-clock limit of the cell; the server's when left out.
        files: relative path -> bytes, put into the work directory first.
        limits, seed, runtime, isolation: as for a session.
    """
    body = ExecuteRequest(
        code=code,
        stdin=stdin,
        runtime=runtime,
        timeout_s=timeout_s,
        isolation=isolation,
        limits=_limits(limits),
        files={path: b64encode(data).decode() for path, data in (files or {}).items()},
        seed=seed,
    )
    return Operation(
        "POST",
        "/v1/execute",
        Run.model_validate_json,
        body,
        silence_s=_silence_s(timeout_s),
        batched={"op": "execute"},
    )


def batch(operations: Sequence[Operation[T]]) -> Operation[list[T | CellarError]]:
    """1 to `BATCH_SIZE` operations in one request. They are those of `create_session`, `queue`, `queue_all`, `run`,
    `delete_session` and `execute`.

    Operations on one session are done in this order, those on different sessions at once. The answer has for each what
    it would have returned by itself, or the error it would have raised. None is tried again by itself.
    """
    body = BatchRequest.model_validate_json(to_json({"operations": [operation.entry() for operation in operations]}))
    silence_s = max((operation.silence_s or 0.0 for operation in operations), default=0.0)

    def outcomes(content: bytes) -> list[T | CellarError]:
        results = BatchReply.model_validate_json(content).results
        return [operation.outcome(result) for operation, result in zip(operations, results, strict=True)]

    near = next(filter(None, (operation.session_id for operation in operations)), None)
    return Operation("POST", "/v1/batch", outcomes, body, silence_s=max(silence_s, RUN_SILENCE_S), near=near)


def batches(operations: Sequence[Operation[T]]) -> list[Operation[list[T | CellarError]]]:
    """Any number of operations in as few batches as can be, in this order."""
    return [batch(operations[start : start + BATCH_SIZE]) for start in range(0, len(operations), BATCH_SIZE)]


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


def _file_path(session_id: str, path: str) -> str:
    return f"{_path(session_id)}/files/{quote(_FILE_PATH.validate_python(path))}"


def _entry(op: str, session_id: str) -> dict[str, str]:
    return {"op": op, "session_id": session_id}


def _limits(limits: AnyLimits) -> LimitsRequest:
    return LimitsRequest.model_validate(limits or {})


def _silence_s(timeout_s: float | None) -> float:
    return RUN_SILENCE_S + (timeout_s or 0.0)


def _cells(content: bytes) -> list[Cell]:
    return Cells.model_validate_json(content).cells


def _the_one_cell(content: bytes) -> Cell:
    (cell,) = _cells(content)
    return cell


def _sessions(content: bytes) -> list[Session]:
    return Sessions.model_validate_json(content).sessions


def _run_if_ended(content: bytes) -> Run | None:
    found = _RUN_OR_ACCEPTED.validate_json(content)
    return found if isinstance(found, Run) else None


def _nothing(content: bytes) -> None:
    """Some replies have no body worth reading."""

"""The wire contract, v1: what goes over HTTP between the executor and everybody else.

The executor returns these very classes and the client parses them, so the two cannot drift apart. Requests refuse what
they do not know and what has the wrong type; replies ignore unknown fields, so that an older client can talk to a newer
server.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

SessionStatus = Literal["ready", "running", "lost", "closed"]
CellStatus = Literal["pending", "running", "ok", "error", "timeout", "oom", "killed", "skipped", "lost", "withdrawn"]
RunStatus = Literal["ok", "error", "timeout", "oom", "killed", "lost"]
Recovery = Literal["fail", "replay"]
OnError = Literal["stop", "continue"]
Tier = Literal["warm", "strict"]
"""How a session's kernel is made: cloned from a warmed zygote, or started in a jail of its own."""
Trust = Literal["isolated", "shared"]
"""Of a fork in its origin: as apart as any two sessions, or a live copy that shares the origin's jail and files."""

ErrorCode = Literal[
    "invalid_json",  # 400
    "unauthorized",  # 401
    "not_found",  # 404, no such route
    "session_not_found",  # 404
    "cell_not_found",  # 404
    "run_not_found",  # 404
    "file_not_found",  # 404
    "method_not_allowed",  # 405
    "session_exists",  # 409
    "cell_not_pending",  # 409
    "request_in_progress",  # 409 + Retry-After: the first request with this idempotency key is still being answered
    "session_lost",  # 410
    "not_repeatable",  # 409, an isolated fork or an atomic run of a session whose cells could not be run again
    "body_too_large",  # 413
    "file_too_large",  # 413, more than can be sent in one piece
    "reply_too_large",  # 413, an operation that was not begun, since the answers before it in its batch are so long
    "invalid_request",  # 422
    "limit_too_high",  # 422, a request may only lower the server's limits
    "unknown_runtime",  # 422
    "isolation_unavailable",  # 422, only a stronger tier than the server's may be asked for, and one that it has
    "invalid_path",  # 422, not a plain relative path to a regular file, or the disk is full
    "idempotency_mismatch",  # 422, the same key or cell id with another body
    "too_many_sessions",  # 429 + Retry-After
    "too_many_cells",  # 429, too many cells pending in one session
    "quota_exceeded",  # 429 + Retry-After, the tenant has as much going on as it may: runs, cells per second, memory
    "internal_error",  # 500
    "not_supported",  # 501, in the contract but not offered by this server
    "store_unavailable",  # 503 + Retry-After, Redis does not answer
    "kernel_unavailable",  # 503 + Retry-After, no isolated kernel could be started
    "owner_unavailable",  # 503 + Retry-After, the server that holds the session does not answer or just gave it up
    "shutting_down",  # 503 + Retry-After
]

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Code = Annotated[str, Field(max_length=1_000_000)]


class Request(BaseModel):
    """A body sent to the server: unknown fields and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Reply(BaseModel):
    """A body sent by the server: fields that are not known yet are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


# --- limits -------------------------------------------------------------------------------------


class Limits(Reply):
    """The limits in force for a session: `cell_timeout_s` and `output_bytes` for each cell, the others for all."""

    cell_timeout_s: float
    memory_mb: int
    processes: int
    disk_mb: int
    output_bytes: int
    """Longest stdout, and longest stderr, of one cell that is kept: more keeps head and tail, and says so."""


class LimitsRequest(Request):
    """Limits asked for; what is left out is the server's. A request may only lower them (else `limit_too_high`)."""

    cell_timeout_s: Seconds | None = None
    memory_mb: Annotated[int, Field(ge=32)] | None = None
    processes: Annotated[int, Field(ge=1)] | None = None
    disk_mb: Annotated[int, Field(ge=1)] | None = None
    output_bytes: Annotated[int, Field(ge=256)] | None = None


# --- sessions -----------------------------------------------------------------------------------


class CreateSession(Request):
    """`POST /v1/sessions`."""

    session_id: Identifier | None = None
    runtime: Identifier = "python"
    isolation: Tier | None = None
    """The server's own tier when left out; a request may only ask for a stronger one (`strict`)."""
    limits: LimitsRequest = LimitsRequest()
    idle_ttl_s: Seconds | None = None
    recovery: Recovery = "fail"
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seeds `random`, numpy and sympy of the session, so that a rollout can be repeated."""
    metadata: dict[str, JsonValue] = {}


class Session(Reply):
    session_id: str
    status: SessionStatus
    generation: int
    """1 at first; one more each time the state was rebuilt or reset."""
    created_at: datetime
    expires_at: datetime
    cells_total: int
    cells_pending: int
    runtime: str
    isolation: Tier | Literal["none"] = "strict"
    limits: Limits
    recovery: Recovery
    seed: int | None = None
    metadata: dict[str, JsonValue] = {}


class SessionPage(Reply):
    sessions: list[Session]
    next_cursor: str | None = None


# --- cells and runs -----------------------------------------------------------------------------


class CellError(Reply):
    type: str
    message: str
    traceback: str


class Cell(Reply):
    """One piece of code given to a session, and its outcome once it ran."""

    cell_id: str
    index: int
    """Place in the session's order of acceptance, from 0."""
    status: CellStatus
    code: str | None = None
    stdout: str = ""
    stderr: str = ""
    result: str | None = None
    """The repr of the last expression, as a notebook shows it; null when there is none or it is None."""
    error: CellError | None = None
    duration_s: float | None = None
    """Wall-clock time, by the supervisor's clock."""
    cpu_s: float | None = None
    """CPU time of all the session's processes while the cell ran, as the host counted it; null where it does not."""
    peak_memory_bytes: int | None = None
    """Most memory that the session held until the cell ended, as the host counted it; null where it does not."""
    truncated: bool = False


class NewCell(Request):
    code: Code
    cell_id: Identifier | None = None


class QueueCells(Request):
    """`POST /v1/sessions/{id}/cells`: one cell, or several at once (all are accepted, or none)."""

    code: Code | None = None
    cell_id: Identifier | None = None
    cells: Annotated[list[NewCell], Field(min_length=1, max_length=1000)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "QueueCells":
        if (self.code is None) == (self.cells is None):
            raise ValueError("give either `code` or `cells`")
        if self.cells is not None and self.cell_id is not None:
            raise ValueError("`cell_id` goes with `code`; inside `cells` each cell has its own")
        ids = [cell.cell_id for cell in self.as_list() if cell.cell_id is not None]
        if len(ids) != len(set(ids)):
            raise ValueError("the same `cell_id` is given twice")
        return self

    def as_list(self) -> list[NewCell]:
        if self.cells is not None:
            return self.cells
        return [NewCell(code=self.code or "", cell_id=self.cell_id)]


class Cells(Reply):
    cells: list[Cell]
    next_after: int | None = None
    """There are more than were asked for: `after` of the next page."""


class RunRequest(Request):
    """`POST /v1/sessions/{id}/run`: queues `code` if given, then runs everything pending, in order."""

    code: Code | None = None
    cell_id: Identifier | None = None
    timeout_s: Seconds | None = None
    """Wall-clock limit of each cell, from the moment it starts."""
    on_error: OnError = "stop"
    atomic: bool = False
    """A run that does not end `ok` leaves the session as it was before the run: its earlier cells and files are played
    again in a fresh kernel. Refused (`not_repeatable`) where that cannot be done."""

    @model_validator(mode="after")
    def _cell_id_needs_code(self) -> "RunRequest":
        if self.cell_id is not None and self.code is None:
            raise ValueError("`cell_id` goes with `code`")
        return self


class Run(Reply):
    """The outcome of one run. `stdout` and `stderr` are those of its cells joined; `result` is the last cell's."""

    run_id: str
    session_id: str
    generation: int
    status: RunStatus
    cells: list[Cell]
    stdout: str = ""
    stderr: str = ""
    result: str | None = None
    error: CellError | None = None
    truncated: bool = False
    duration_s: float
    queue_s: float
    """Time the run waited for its turn, before its first cell started."""
    recovered: bool = False
    """The session's state was rebuilt by replay before this run."""
    rolled_back: bool = False
    """The run was `atomic` and failed: nothing of it stays, and the session is as it was before. Only where its earlier
    cells end otherwise when they are played again, it is lost, and says so from then on."""


class RunAccepted(Reply):
    """A run that goes on: the answer to `Prefer: respond-async` and, until its end, to `GET .../runs/{run_id}`; also
    the first event of a stream."""

    run_id: str


class CellStarted(Reply):
    cell_id: str
    index: int


class CellOutput(Reply):
    """What a cell has written since the last such event; at most `output_bytes` of each stream. The `Cell` has all."""

    cell_id: str
    stream: Literal["stdout", "stderr"]
    text: str
    dropped: bool = False
    """Some text of this stream was left out before this one, since the reader was too slow for it."""


RunEvent = RunAccepted | CellStarted | CellOutput | Cell | Run
"""An event of `POST .../run?stream=true`: `run` first, then for each cell `cell_started`, `output` as it comes, and
`cell`; last `done`, or `error` with a `Problem`."""


class ExecuteRequest(Request):
    """`POST /v1/execute`: one cell in a fresh session that is then gone."""

    code: Code
    stdin: Annotated[str, Field(max_length=1_000_000)] = ""
    runtime: Identifier = "python"
    isolation: Tier | None = None
    timeout_s: Seconds | None = None
    limits: LimitsRequest = LimitsRequest()
    files: dict[str, str] = {}
    """Relative path -> base64 of its bytes, put into the work directory first."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None


# --- forks and files ----------------------------------------------------------------------------


class ForkRequest(Request):
    """`POST /v1/sessions/{id}/fork`: copies of the session's namespace, files and log at this point."""

    count: Annotated[int, Field(ge=1, le=256)] | None = None
    """How many; as many as there are `session_ids` when left out, else one."""
    session_ids: Annotated[list[Identifier], Field(min_length=1, max_length=256)] | None = None
    trust: Trust = "isolated"

    @model_validator(mode="after")
    def _ids_for_all(self) -> "ForkRequest":
        ids = self.session_ids
        if ids is not None and len(ids) != len(set(ids)):
            raise ValueError("the same session id is given twice")
        if ids is not None and self.count is not None and len(ids) != self.count:
            raise ValueError("`count` says another number than there are `session_ids`")
        return self


class Sessions(Reply):
    """The forks of a session, in the order of the `session_ids`."""

    sessions: list[Session]


class FileInfo(Reply):
    path: str
    """Relative to the session's work directory."""
    size: int


class Files(Reply):
    """The regular files below the work directory, in order of their paths."""

    files: list[FileInfo]
    truncated: bool = False
    """There are more than are listed."""


# --- batches ------------------------------------------------------------------------------------


class BatchCreate(CreateSession):
    op: Literal["create"]


class BatchQueue(QueueCells):
    op: Literal["queue"]
    session_id: Identifier


class BatchRun(RunRequest):
    op: Literal["run"]
    session_id: Identifier


class BatchDelete(Request):
    op: Literal["delete"]
    session_id: Identifier


class BatchExecute(ExecuteRequest):
    op: Literal["execute"]


BatchOperation = Annotated[BatchCreate | BatchQueue | BatchRun | BatchDelete | BatchExecute, Field(discriminator="op")]


class BatchRequest(Request):
    """`POST /v1/batch`. Operations on one session keep their order; those on different sessions run in parallel."""

    operations: Annotated[list[BatchOperation], Field(min_length=1, max_length=1000)]


class BatchResult(Reply):
    """What the operation would have been answered by its own route."""

    status: int
    body: JsonValue = None


class BatchReply(Reply):
    results: list[BatchResult]


# --- the server about itself --------------------------------------------------------------------


class Isolation(Reply):
    tier: Tier | Literal["none"]
    """Of sessions that do not ask for another one."""
    namespaces: list[str]
    seccomp: Literal["allow-list", "none"]
    cgroup: Literal["v2", "v1", "none"]
    host_uid: Literal["per-session", "shared"]
    """Whether each session has a host uid of its own (the server runs as root), or all have the server's."""


class Info(Reply):
    version: str
    instance: str = ""
    """Which of several servers on one Redis this is."""
    isolation: Isolation
    limits: Limits
    max_sessions: int
    runtimes: list[str]


class Health(Reply):
    status: Literal["ok"]
    isolation: Literal["isolated", "INSECURE: no isolation"]


class Readiness(Reply):
    status: Literal["ready", "not_ready"]
    redis: str
    """"ok", or what is wrong."""
    isolation: str
    """"ok", or which check of the live self-test failed."""
    effective: Isolation


class FieldProblem(Reply):
    field: str
    message: str


class Problem(Reply):
    """An RFC 9457 `application/problem+json` body; `code` is stable, `title` and `detail` are for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: ErrorCode | str
    """An `ErrorCode`, or one that only a newer server knows."""
    detail: str = ""
    errors: list[FieldProblem] = []
    retry_after_s: float | None = None

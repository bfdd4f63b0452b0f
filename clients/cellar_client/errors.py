"""Everything the client raises.

CellarError
├── TransportError                the server gave no (whole) answer
│   ├── ConnectionFailed          nothing was sent, or the connection broke
│   ├── RequestTimeout            no answer in time
│   └── InvalidReply              an answer that is not of the contract
└── ServerError                   the server said no; one class for each `code` of the wire
    ├── BadRequest                400, 404 (route), 405, 413, 422, 501: the request has to change
    │   ├── LimitTooHigh
    │   ├── UnknownRuntime
    │   ├── IdempotencyMismatch
    │   ├── BodyTooLarge
    │   ├── FileTooLarge
    │   ├── ReplyTooLarge
    │   ├── InvalidPath           of a file in a session's work directory
    │   ├── IsolationUnavailable
    │   └── NotSupported
    ├── Unauthorized              401
    ├── NotFound
    │   ├── SessionNotFound
    │   ├── CellNotFound
    │   ├── RunNotFound
    │   └── FileNotFound
    ├── Conflict
    │   ├── SessionExists
    │   ├── CellNotPending
    │   ├── NotRepeatable         no isolated fork and no atomic run of this session
    │   └── RequestInProgress     retried
    ├── SessionLost               410: the session's kernel died, its state is gone
    ├── TooMany                   429
    │   ├── TooManySessions       retried
    │   ├── QuotaExceeded         retried
    │   └── TooManyCells
    └── ServerUnavailable         500, 503: retried
        ├── InternalError
        ├── StoreUnavailable
        ├── KernelUnavailable
        ├── OwnerUnavailable      the server that holds the session is gone, and not yet replaced
        └── ShuttingDown

A cell that fails is none of these: it is a result.
"""

from collections.abc import Mapping

from cellar_client.schemas import Problem


class CellarError(Exception):
    """Base of everything the client raises."""


class TransportError(CellarError):
    """The server gave no (whole) answer; whether it did something is unknown."""


class ConnectionFailed(TransportError):
    pass


class RequestTimeout(TransportError):
    pass


class InvalidReply(TransportError):
    pass


class ServerError(CellarError):
    """The server answered with a problem.

    Attributes:
        problem: the body as the server sent it (`code`, `title`, `detail`, `errors`).
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        fields = "".join(f"; {e.field}: {e.message}" for e in problem.errors)
        super().__init__(f"{problem.code}: {problem.detail or problem.title}{fields}")


class BadRequest(ServerError):
    pass


class LimitTooHigh(BadRequest):
    pass


class UnknownRuntime(BadRequest):
    pass


class IdempotencyMismatch(BadRequest):
    pass


class BodyTooLarge(BadRequest):
    pass


class FileTooLarge(BadRequest):
    pass


class ReplyTooLarge(BadRequest):
    """An operation of a batch that was not begun; it can be sent again."""


class InvalidPath(BadRequest):
    pass


class IsolationUnavailable(BadRequest):
    pass


class NotSupported(BadRequest):
    pass


class Unauthorized(ServerError):
    pass


class NotFound(ServerError):
    pass


class SessionNotFound(NotFound):
    pass


class CellNotFound(NotFound):
    pass


class RunNotFound(NotFound):
    pass


class FileNotFound(NotFound):
    pass


class Conflict(ServerError):
    pass


class SessionExists(Conflict):
    pass


class CellNotPending(Conflict):
    pass


class NotRepeatable(Conflict):
    pass


class RequestInProgress(Conflict):
    pass


class SessionLost(ServerError):
    pass


class TooMany(ServerError):
    pass


class TooManySessions(TooMany):
    pass


class QuotaExceeded(TooMany):
    pass


class TooManyCells(TooMany):
    pass


class ServerUnavailable(ServerError):
    pass


class InternalError(ServerUnavailable):
    pass


class StoreUnavailable(ServerUnavailable):
    pass


class KernelUnavailable(ServerUnavailable):
    pass


class OwnerUnavailable(ServerUnavailable):
    pass


class ShuttingDown(ServerUnavailable):
    pass


BY_CODE: Mapping[str, type[ServerError]] = {
    "invalid_json": BadRequest,
    "unauthorized": Unauthorized,
    "not_found": NotFound,
    "session_not_found": SessionNotFound,
    "cell_not_found": CellNotFound,
    "run_not_found": RunNotFound,
    "file_not_found": FileNotFound,
    "method_not_allowed": BadRequest,
    "session_exists": SessionExists,
    "cell_not_pending": CellNotPending,
    "not_repeatable": NotRepeatable,
    "request_in_progress": RequestInProgress,
    "session_lost": SessionLost,
    "body_too_large": BodyTooLarge,
    "file_too_large": FileTooLarge,
    "reply_too_large": ReplyTooLarge,
    "invalid_request": BadRequest,
    "limit_too_high": LimitTooHigh,
    "unknown_runtime": UnknownRuntime,
    "isolation_unavailable": IsolationUnavailable,
    "invalid_path": InvalidPath,
    "idempotency_mismatch": IdempotencyMismatch,
    "too_many_sessions": TooManySessions,
    "too_many_cells": TooManyCells,
    "quota_exceeded": QuotaExceeded,
    "internal_error": InternalError,
    "not_supported": NotSupported,
    "store_unavailable": StoreUnavailable,
    "kernel_unavailable": KernelUnavailable,
    "owner_unavailable": OwnerUnavailable,
    "shutting_down": ShuttingDown,
}


def from_problem(problem: Problem) -> ServerError:
    """The exception for a problem body; a code of a newer server becomes a plain `ServerError`."""
    return BY_CODE.get(problem.code, ServerError)(problem)

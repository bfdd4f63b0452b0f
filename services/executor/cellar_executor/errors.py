"""How the server says no: one exception and one table; `http.problems` writes it down.

A cell that fails is not an error but a result; see `runs`.
"""

from collections.abc import Mapping, Sequence

from cellar_client.schemas import ErrorCode, FieldProblem, Problem
from cellar_executor.telemetry import metrics

STATUS: Mapping[ErrorCode, tuple[int, str]] = {
    "invalid_json": (400, "The body is not JSON"),
    "unauthorized": (401, "A valid API key is needed"),
    "not_found": (404, "There is no such route"),
    "session_not_found": (404, "There is no such session"),
    "cell_not_found": (404, "There is no such cell"),
    "run_not_found": (404, "There is no such run"),
    "file_not_found": (404, "There is no such file"),
    "method_not_allowed": (405, "This route has no such method"),
    "session_exists": (409, "This session id is or was in use"),
    "cell_not_pending": (409, "The cell is no longer pending"),
    "not_repeatable": (409, "The session's cells cannot be run again"),
    "request_in_progress": (409, "The first such request is still being answered"),
    "session_lost": (410, "The session's kernel died and its state is gone"),
    "body_too_large": (413, "The body is too large"),
    "reply_too_large": (413, "The answers of the batch are too long for another one"),
    "file_too_large": (413, "The file is too large"),
    "invalid_request": (422, "The request is not valid"),
    "limit_too_high": (422, "A request may only lower the limits"),
    "unknown_runtime": (422, "There is no such runtime"),
    "isolation_unavailable": (422, "The session cannot be isolated in this way"),
    "invalid_path": (422, "This is no place for a file"),
    "idempotency_mismatch": (422, "The same key or cell id came with another body"),
    "too_many_sessions": (429, "No more sessions can be had now"),
    "too_many_cells": (429, "The session's log is full"),
    "quota_exceeded": (429, "The tenant has as much going on as it may"),
    "internal_error": (500, "The server failed"),
    "not_supported": (501, "This server does not offer that"),
    "store_unavailable": (503, "Redis cannot be used now"),
    "kernel_unavailable": (503, "No isolated kernel could be started"),
    "owner_unavailable": (503, "The server that holds the session does not answer"),
    "shutting_down": (503, "The server is shutting down"),
}

RETRY_AFTER_S: Mapping[ErrorCode, float] = {
    "request_in_progress": 1,
    "too_many_sessions": 1,
    "quota_exceeded": 1,
    "store_unavailable": 1,
    "kernel_unavailable": 1,
    "owner_unavailable": 1,
    "shutting_down": 5,
}


class CannotServe(Exception):
    """The server does not start; the message says why."""


class Refusal(Exception):
    """The request is not granted; `code` says why. Raised anywhere below a route, answered by `http.problems`."""

    def __init__(
        self,
        code: ErrorCode,
        detail: str = "",
        *,
        errors: Sequence[FieldProblem] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code: ErrorCode = code
        self.detail = detail
        self.errors = errors
        self.retry_after_s = RETRY_AFTER_S.get(code) if retry_after_s is None else retry_after_s


class StoreUnavailable(Refusal):
    """Redis did not answer: whether it did what was asked is unknown."""

    def __init__(self, detail: str) -> None:
        super().__init__("store_unavailable", detail)


class Moved(Refusal):
    """This server does not hold the session (any more): the next request finds the one that does."""

    def __init__(self) -> None:
        super().__init__("owner_unavailable", "the session has just been taken over by another server")


def invalid_field(field: str, message: str) -> Refusal:
    return Refusal("invalid_request", errors=[FieldProblem(field=field, message=message)])


def problem_of(refusal: Refusal) -> Problem:
    metrics.refusals.labels(refusal.code).inc()
    status, title = STATUS[refusal.code]
    return Problem(
        title=title,
        status=status,
        code=refusal.code,
        detail=refusal.detail,
        errors=list(refusal.errors),
        retry_after_s=refusal.retry_after_s,
    )

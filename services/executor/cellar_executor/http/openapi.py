"""What the OpenAPI document says beyond what FastAPI knows: refusals with their media type and headers, and the key."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from cellar_client.schemas import ErrorCode, Problem
from cellar_executor.errors import RETRY_AFTER_S, STATUS
from cellar_executor.http.problems import MEDIA_TYPE

Responses = dict[int | str, dict[str, Any]]

ALWAYS: tuple[ErrorCode, ...] = (
    "unauthorized",
    "body_too_large",
    "invalid_request",
    "internal_error",
    "store_unavailable",
    "shutting_down",
)
"""What any route of v1 may refuse."""
ONCE: tuple[ErrorCode, ...] = ("invalid_json", "request_in_progress", "idempotency_mismatch")
"""And those that take an `Idempotency-Key`."""
SESSION: tuple[ErrorCode, ...] = ("session_not_found", "owner_unavailable")
"""And those of one session."""
KERNEL: tuple[ErrorCode, ...] = ("session_lost", "kernel_unavailable")
"""And those that need its kernel."""
START: tuple[ErrorCode, ...] = (
    "limit_too_high",
    "unknown_runtime",
    "isolation_unavailable",
    "too_many_sessions",
    "quota_exceeded",
    "kernel_unavailable",
)
"""And those that start one."""

_REF = "#/components/schemas/{model}"
_RETRY_AFTER = {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}
_REPLAYED = {
    "description": "The answer was given before, to the same `Idempotency-Key`",
    "schema": {"type": "string", "const": "true"},
}
_CHALLENGE = {"description": "How to be let in", "schema": {"type": "string", "const": "Bearer"}}


def refusals(*codes: ErrorCode) -> Responses:
    """The responses of a route of v1 that may refuse with these codes."""
    by_status: dict[int, list[ErrorCode]] = {}
    for code in dict.fromkeys((*ALWAYS, *codes)):
        by_status.setdefault(STATUS[code][0], []).append(code)
    return {status: _refusal(status, by_status[status]) for status in sorted(by_status)}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of `app`: made once, but for whether a key is needed, which changes with the first one."""
    if app.openapi_schema is None:
        app.openapi_schema = _made(app)
    keys_required: bool = app.state.service.tenants.keys_required
    return {**app.openapi_schema, "security": [{"key": []}] if keys_required else []}


def _made(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, problem = models_json_schema([(Problem, "serialization")], ref_template=_REF)
    made["components"]["schemas"] |= problem["$defs"]
    made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            _say_what_is_replayed(operation)
            if not path.startswith("/v1/"):
                operation["security"] = []
    return made


def _refusal(status: int, codes: list[ErrorCode]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "description": "; ".join(f"`{code}`: {STATUS[code][1]}" for code in codes),
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}},
    }
    if status == 401:
        said["headers"] = {"WWW-Authenticate": _CHALLENGE}
    if not RETRY_AFTER_S.keys().isdisjoint(codes):
        said["headers"] = {"Retry-After": _RETRY_AFTER}
    return said


def _say_what_is_replayed(operation: dict[str, Any]) -> None:
    if any(parameter["name"].lower() == "idempotency-key" for parameter in operation.get("parameters", ())):
        for status, response in operation["responses"].items():
            if status.startswith("2"):
                response.setdefault("headers", {})["Idempotency-Replayed"] = _REPLAYED

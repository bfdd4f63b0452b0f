"""What a request may ask for: limits only downwards, runtimes and timeouts only what there is. Pure functions."""

import base64
import binascii
import json
from collections.abc import Collection, Mapping

from cellar_client.schemas import CreateSession, FieldProblem, Limits, LimitsRequest
from cellar_executor.errors import Refusal, invalid_field
from cellar_executor.ids import is_server_made
from cellar_executor.records import SessionConfig

MAX_METADATA_BYTES = 16_384


def session_config(
    request: CreateSession, server: Limits, runtimes: Collection[str], idle_ttl_s: float
) -> SessionConfig:
    """The config of a session as asked for. Raises `invalid_request`, `limit_too_high`, `unknown_runtime`."""
    if request.session_id is not None and is_server_made(request.session_id):
        raise invalid_field("session_id", "ids of this form are made by the server only")
    check_runtime(request.runtime, runtimes)
    _check_metadata(request.metadata)
    return SessionConfig(
        runtime=request.runtime,
        limits=limits_within(server, request.limits),
        recovery=request.recovery,
        idle_ttl_s=request.idle_ttl_s or idle_ttl_s,
        seed=request.seed,
        metadata=request.metadata,
    )


def check_runtime(runtime: str, runtimes: Collection[str]) -> None:
    if runtime not in runtimes:
        raise Refusal("unknown_runtime", f"there are: {', '.join(sorted(runtimes))}")


def limits_within(server: Limits, asked: LimitsRequest) -> Limits:
    wanted = asked.model_dump(exclude_none=True)
    allowed = server.model_dump()
    too_high = [
        FieldProblem(field=f"limits.{name}", message=f"this server allows {allowed[name]}")
        for name, value in wanted.items()
        if value > allowed[name]
    ]
    if too_high:
        raise Refusal("limit_too_high", errors=too_high)
    return Limits(**{**allowed, **wanted})


def timeout_within(limits: Limits, asked_s: float | None) -> float:
    if asked_s is None:
        return limits.cell_timeout_s
    if asked_s > limits.cell_timeout_s:
        problem = FieldProblem(field="timeout_s", message=f"this session allows {limits.cell_timeout_s}")
        raise Refusal("limit_too_high", errors=[problem])
    return asked_s


def decode_files(files: Mapping[str, str]) -> dict[str, bytes]:
    try:
        return {path: base64.b64decode(text, validate=True) for path, text in files.items()}
    except (binascii.Error, ValueError):
        raise invalid_field("files", "each value must be base64") from None


def _check_metadata(metadata: Mapping[str, object]) -> None:
    try:
        size = len(json.dumps(metadata, allow_nan=False))
    except ValueError:
        raise invalid_field("metadata", "NaN and Infinity are not JSON") from None
    if size > MAX_METADATA_BYTES:
        raise invalid_field("metadata", f"longer than {MAX_METADATA_BYTES} bytes")

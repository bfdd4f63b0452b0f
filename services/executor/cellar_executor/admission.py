"""What a request may ask for: limits only downwards, isolation only upwards, paths only below. Pure functions."""

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from typing import Literal

from cellar_client.schemas import CreateSession, FieldProblem, Limits, LimitsRequest, Tier
from cellar_executor.errors import Refusal, invalid_field
from cellar_executor.ids import is_server_made
from cellar_executor.records import SessionConfig

MAX_METADATA_BYTES = 16_384
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255

AnyTier = Tier | Literal["none"]
STRENGTH: Mapping[AnyTier, int] = {"none": 0, "warm": 1, "strict": 2}


def session_config(
    request: CreateSession, server: Limits, tier: AnyTier, runtimes: Collection[str], idle_ttl_s: float
) -> SessionConfig:
    """The config of a session as asked for, on a server with these limits and this tier of its own.

    Raises `invalid_request`, `limit_too_high`, `unknown_runtime`, `isolation_unavailable`.
    """
    if request.session_id is not None:
        check_session_id("session_id", request.session_id)
    check_runtime(request.runtime, runtimes)
    _check_metadata(request.metadata)
    return SessionConfig(
        runtime=request.runtime,
        isolation=isolation_within(tier, request.isolation),
        limits=limits_within(server, request.limits),
        recovery=request.recovery,
        idle_ttl_s=request.idle_ttl_s or idle_ttl_s,
        seed=request.seed,
        metadata=request.metadata,
    )


def check_session_id(field: str, session_id: str) -> None:
    if is_server_made(session_id):
        raise invalid_field(field, "ids of this form are made by the server only")


def check_runtime(runtime: str, runtimes: Collection[str]) -> None:
    if runtime not in runtimes:
        raise Refusal("unknown_runtime", f"there are: {', '.join(sorted(runtimes))}")


def isolation_within(server: AnyTier, asked: Tier | None) -> AnyTier:
    """The server's tier, or the one asked for if it is as strong. Raises `isolation_unavailable`."""
    if asked is None:
        return server
    if server == "none":
        raise Refusal("isolation_unavailable", "this server runs without any isolation")
    if STRENGTH[asked] < STRENGTH[server]:
        raise Refusal("isolation_unavailable", f"this server allows nothing weaker than {server}")
    return asked


def isolation_now(server: AnyTier, promised: AnyTier) -> AnyTier:
    """Of a kernel for a session that was promised this, perhaps by a server with another tier.

    Raises `isolation_unavailable` where only an insecure server is left to keep the promise.
    """
    if server == "none" and promised != "none":
        raise Refusal("isolation_unavailable", "the session is an isolated one, and this server isolates nothing")
    return max(server, promised, key=STRENGTH.__getitem__)


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


def check_path(path: str) -> None:
    """A plain relative path, as the kernels' host has them: `/` parts names and a backslash is a letter.

    Raises `invalid_path`.
    """
    names = path.split("/")
    if not path or "\0" in path or any(name in ("", ".", "..") for name in names):
        raise Refusal("invalid_path", "not a plain relative path")
    if len(path.encode()) > MAX_PATH_BYTES or any(len(name.encode()) > MAX_NAME_BYTES for name in names):
        raise Refusal("invalid_path", f"longer than {MAX_PATH_BYTES} bytes, or a name in it than {MAX_NAME_BYTES}")


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

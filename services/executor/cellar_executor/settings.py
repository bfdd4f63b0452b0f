"""What the operator decides: read once at the start, from flags and the environment, and passed down."""

import ipaddress
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cellar_client.schemas import Identifier, Limits, LimitsRequest, Tier
from cellar_executor.kernel import DEFAULT_PREIMPORTS, RuntimeConfig
from cellar_executor.tenancy.tenants import Quota

ENV_PREFIX = "CELLAR_EXECUTOR_"

Durability = Literal["always", "off"]
"""Whether what is acknowledged has to be on Redis's disk: `always` insists that Redis flushes every write."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Everything the server can be told. Raises `ValueError` for what cannot be served safely."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: Annotated[int, Field(ge=0, le=65535)]
    address_file: Path | None
    advertise_url: Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+/?$")] | None
    """Where the other servers on the same Redis reach this one; None: where it listens."""
    redis_url: str | None
    durability: Durability
    lease_s: Annotated[float, Field(ge=2, le=3600)]
    """A server on a shared Redis that cannot renew its lease for so long has lost its sessions to the others."""
    data_dir: Path
    api_keys: Mapping[str, str]
    """Key -> tenant."""
    limits: Limits
    """What a session gets, and the most it may ask for."""
    max_sessions: Annotated[int, Field(ge=1)]
    """Kernels of this server at once."""
    max_pending_cells: Annotated[int, Field(ge=1)]
    max_log_mb: Annotated[int, Field(ge=1)]
    """Code and outputs of one session that are kept; then it takes no more cells."""
    max_body_mb: Annotated[int, Field(ge=1)]
    default_quota: Quota
    """Of tenants without one of their own."""
    max_running: Annotated[int, Field(ge=1)]
    """Runs of this server at once, of all tenants."""
    idle_ttl_s: Positive
    park_after_s: Positive
    """A session that can be rebuilt gives its kernel back when it was idle for so long."""
    min_free_memory_mb: Annotated[int, Field(ge=0)]
    """With less free memory idle sessions give their kernels back."""
    replay_timeout_s: Positive
    drain_timeout_s: Positive
    idempotency_ttl_s: Annotated[int, Field(ge=60)]
    runtimes: Mapping[Identifier, RuntimeConfig]
    nsjail: Path | None
    isolation: Tier
    zygotes: Annotated[int, Field(ge=1)]
    """Of each runtime."""
    ready_sessions: Annotated[int, Field(ge=0)]
    """Of each runtime."""
    recycle_after_sessions: Annotated[int, Field(ge=1, le=60_000)]
    recycle_after_s: Positive
    insecure_no_isolation: bool
    traces: bool
    """Sent to where OpenTelemetry's standard variables say."""


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_limits(cell_timeout_s: float, memory_mb: int, processes: int, disk_mb: int, output_bytes: int) -> Limits:
    """The server's limits, within the bounds that hold for those of a request."""
    checked = LimitsRequest(
        cell_timeout_s=cell_timeout_s,
        memory_mb=memory_mb,
        processes=processes,
        disk_mb=disk_mb,
        output_bytes=output_bytes,
    )
    return Limits(**checked.model_dump())


def parse_api_keys(text: str) -> dict[str, str]:
    """`KEY,TENANT:KEY,...` -> key -> tenant. Keys of one tenant see the same sessions; the tenant is `default`."""
    keys: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        tenant, _, key = part.rpartition(":")
        tenant = tenant or "default"
        if not tenant.isidentifier():
            raise ValueError("the tenant of an API key must be a plain name")
        if len(key) < 16:
            raise ValueError("an API key must have at least 16 characters")
        keys[key] = tenant
    return keys


def parse_runtimes(given: list[str], preimports: list[str]) -> dict[str, RuntimeConfig]:
    """`PATH` or `NAME=PATH` each, and `NAME=MODULE,...` each -> name -> runtime.

    No runtime given: the `runtime` environment beside this one.
    """
    pythons: dict[str, Path] = {}
    for part in given or [str(_default_runtime())]:
        name, _, executable = part.rpartition("=")
        pythons[name or "python"] = Path(executable).absolute()
    for name, path in pythons.items():
        if not path.is_file():
            raise ValueError(f"runtime {name}: there is no Python at {path}")
    modules = _parse_preimports(preimports)
    for name in modules.keys() - pythons.keys():
        raise ValueError(f"preimports for a runtime that is not there: {name}")
    return {name: RuntimeConfig(python, modules.get(name, DEFAULT_PREIMPORTS)) for name, python in pythons.items()}


def _parse_preimports(given: list[str]) -> dict[str, tuple[str, ...]]:
    modules: dict[str, tuple[str, ...]] = {}
    for part in given:
        name, equals, listed = part.partition("=")
        if not equals:
            raise ValueError(f"preimports are NAME=MODULE,..., not {part}")
        modules[name] = tuple(module.strip() for module in listed.split(",") if module.strip())
        for module in modules[name]:
            if not all(word.isidentifier() for word in module.split(".")):
                raise ValueError(f"runtime {name}: {module} is not the name of a module")
    return modules


def traces_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's standard variables ask for traces. Raises `ValueError` for what is not offered."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return False
    if not exporter and not any(environment.get(name) for name in endpoints):
        return False
    if exporter not in ("", "otlp"):
        raise ValueError(f"OTEL_TRACES_EXPORTER is {exporter}: only otlp and none are offered")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(name, "http/protobuf") != "http/protobuf":
            raise ValueError(f"{name} is {environment[name]}: only http/protobuf is offered")
    return True


def find_binary(name: str, given: Path | None = None) -> Path | None:
    """`given`, else the binary beside this Python, else the one on PATH."""
    if given is not None:
        return given.absolute()
    beside = Path(sys.executable).parent / name
    if beside.is_file():
        return beside
    found = shutil.which(name)
    return Path(found) if found else None


def _default_runtime() -> Path:
    runtime = Path(sys.prefix) / "envs" / "runtime" / "bin" / "python"
    return runtime if runtime.is_file() else Path(sys.executable)

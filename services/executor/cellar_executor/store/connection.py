"""The line to Redis, and the named scripts that run there."""

import re
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.ids import Ref
from cellar_executor.records import Quotas
from cellar_executor.store.line import Line, Script

SERVER = "cellar:server"
SESSIONS = "cellar:sessions"
UNAVAILABLE = re.compile(r"(^|-)(FENCED|OOM|MISCONF|READONLY|BUSY) ")
"""Error replies, whole or quoted by the script that met them, that say: not now."""
SESSION_SCRIPTS = (
    *("create", "fork", "touch", "renew", "lose", "delete"),
    *("accept", "begin", "step", "withdraw", "stage", "keep"),
)
ANSWER_SCRIPTS = ("claim", "settle")


class Connection:
    def __init__(self, redis: Redis, line: Line, instance: str, quotas: Quotas) -> None:
        self._redis = redis
        self._line = line
        self._quotas = quotas
        self.instance = instance
        folder = files("cellar_executor") / "scripts"
        sources = {
            name: (folder / f"{name}.lua").read_text() for name in ("prelude", *SESSION_SCRIPTS, *ANSWER_SCRIPTS)
        }
        self._scripts = {
            name: Script(source if name in ANSWER_SCRIPTS else sources["prelude"] + source)
            for name, source in sources.items()
        }

    async def _script(self, name: str, ref: Ref, *args: str | float | bytes, others: Sequence[Ref] = ()) -> Any:
        """Run a script on a session; `others` are sessions that it makes."""
        keys = [key for one in (ref, *others) for key in _keys(one)]
        return await answered(self._line.run(self._scripts[name], keys, [self.instance, str(ref), *args]))

    async def _answer_script(self, name: str, answer: str, *args: str | float) -> Any:
        return await answered(self._line.run(self._scripts[name], [f"cellar:answer:{answer}"], args))


def _keys(ref: Ref) -> list[str]:
    """In the order in which `prelude.lua` names them."""
    return [
        SERVER,
        SESSIONS,
        f"cellar:listing:{ref.tenant}",
        f"cellar:deleted:{ref}",
        f"cellar:session:{ref}",
        f"cellar:ids:{ref}",
        f"cellar:pending:{ref}",
        f"cellar:runs:{ref}",
        f"cellar:cell:{ref}:",
        f"cellar:file:{ref}:",
    ]


async def answered(reply: Any) -> Any:
    """What Redis answers; its client has no narrower type. Raises `StoreUnavailable`, also when it cannot write."""
    try:
        return await reply
    except ResponseError as error:
        if isinstance(error, (OutOfMemoryError, ReadOnlyError)) or UNAVAILABLE.search(str(error)):
            raise StoreUnavailable(str(error)) from error
        raise
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"{type(error).__name__}") from error


def from_now(ttl_s: float) -> float:
    """The Unix time in so many seconds."""
    return time.time() + ttl_s


def check(reply: str) -> None:
    """Raise what a script refused."""
    match reply:
        case "missing":
            raise Refusal("session_not_found")
        case "exists":
            raise Refusal("session_exists")
        case "full":
            raise Refusal("too_many_sessions")
        case "mismatch":
            raise Refusal("idempotency_mismatch", "this cell id was given with another code")
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

"""Whether Redis keeps what it has acknowledged: asked once, before anything is served.

Redis answers a write when it is on disk (`appendfsync always`), and flushes once for all writes that it has read
together: so many clients share the cost of one flush, and none waits for a timer. `WAITAOF` on top of `everysec` would
promise the same and take up to a second for each write.
"""

from redis.exceptions import ResponseError

from cellar_executor.errors import CannotServe
from cellar_executor.settings import Durability
from cellar_executor.store import Store

MIN_VERSION = (6, 2)


async def insist_on_durability(store: Store, durability: Durability) -> None:
    """Raises `CannotServe`, which says what to set; `StoreUnavailable`."""
    try:
        found = await store.server_settings()
    except ResponseError as error:
        if durability == "off":
            return
        problem: str | None = f"does not tell its settings ({error})"
    else:
        problem = _problem(found, durability)
    if problem is not None:
        raise CannotServe(f"this Redis {problem}")


def _problem(found: dict[str, str], durability: Durability) -> str | None:
    if tuple(int(part) for part in found["version"].split(".")[:2]) < MIN_VERSION:
        return f"is version {found['version']}: {MIN_VERSION[0]}.{MIN_VERSION[1]} or later is needed"
    if found["maxmemory-policy"] != "noeviction":
        return f"may evict sessions (maxmemory-policy {found['maxmemory-policy']}): set it to noeviction"
    if durability == "always" and (found["appendonly"], found["appendfsync"]) != ("yes", "always"):
        return "may lose what it has acknowledged: set appendonly yes and appendfsync always, or use --durability off"
    return None

"""`cellar-executor` with a way to die at a chosen write to Redis, or with one of its guards removed.

FAIL_AT_FILE is a file: while it holds `begin:before` (or `:after`), the server kills itself right before it sends the
script `begin` to Redis (or when the reply has come), and the file is gone. MUTANT is a name in `MUTANTS`.

Production code knows nothing of it: the one way through which all scripts go is wrapped here.
"""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cellar_executor.cli import main
from cellar_executor.kernels import fence
from cellar_executor.records import Claim
from cellar_executor.store import connection, lease, ownership
from cellar_executor.store.answers import Answers
from cellar_executor.store.line import Script

FENCED = "if redis.call('EXISTS', LEASE) == 0 then return redis.error_reply"
MOVED = "if owner ~= INSTANCE or epoch ~= EPOCH then return {'moved'} end"
TOMBSTONE = "redis.call('SET', TOMBSTONE, 1)"
TAKEN = "redis.call('HSET', CELL .. running, 'status', 'lost')"


def fail_at(file: Path) -> None:
    """Every write to Redis passes here."""

    def here(name: str, side: str) -> None:
        if file.exists() and file.read_text() == f"{name}:{side}":
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(call: Callable[..., Any], name: str | None = None) -> Callable[..., Any]:
        async def through(self: connection.Connection, *args: Any, **kwargs: Any) -> Any:
            script = name or args[0]
            here(script, "before")
            reply = await call(self, *args, **kwargs)
            here(script, "after")
            return reply

        return through

    connection.Connection._run = watched(connection.Connection._run)  # type: ignore[method-assign]
    for name in ("register", "unregister"):
        setattr(ownership.Ownership, name, watched(getattr(ownership.Ownership, name), name))


def without(*removed: tuple[str, str]) -> None:
    """Scripts run with these texts replaced; each has to be there in one of them at least."""
    sources = [path.read_text() for path in Path(connection.__file__).parent.rglob("*.lua")]
    for text, _ in removed:
        assert any(text in source for source in sources), text

    def script(source: str) -> Script:
        for text, instead in removed:
            source = source.replace(text, instead)
        return Script(source)

    vars(connection)["Script"] = script


def no_fencing() -> None:
    without((FENCED, "if false then return redis.error_reply"), (MOVED, ""))
    lease.Lease._renew = _renew_blindly  # type: ignore[method-assign]
    fence.Fence.put_off = lambda self, until: None  # type: ignore[method-assign]


def _renew_blindly(self: lease.Lease) -> None:
    self._set(only_if_there=False)


def no_started_mark() -> None:
    pending = "redis.call('HSET', CELL .. running, 'status', 'pending'); redis.call('ZADD', PENDING, running, running)"
    without((TAKEN, pending))


def no_idempotency() -> None:
    async def claim(self: Answers, name: str, digest: str, nonce: str, **more: bool) -> Claim:
        return Claim("first", nonce)

    async def settle(self: Answers, name: str, status: int, body: str) -> None:
        return None

    Answers.claim, Answers.settle = claim, settle  # type: ignore[method-assign]


def no_tombstones() -> None:
    without((TOMBSTONE, ""))


MUTANTS: Mapping[str, Callable[[], None]] = {
    "no fencing": no_fencing,
    "no started mark": no_started_mark,
    "no idempotency": no_idempotency,
    "no tombstones": no_tombstones,
}


if __name__ == "__main__":
    if "FAIL_AT_FILE" in os.environ:
        fail_at(Path(os.environ["FAIL_AT_FILE"]))
    if "MUTANT" in os.environ:
        MUTANTS[os.environ["MUTANT"]]()
    main()

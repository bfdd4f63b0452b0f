"""The durable truth about sessions, cells and idempotency keys: the only module that knows Redis.

A cell's log: accepted (durable before the client is answered) -> started (run, generation, server instance; written
before the kernel gets it) -> finished (outcome, immutable). Each change of more than one key is one named script in
`scripts/`; finishing a cell and starting the next is one write, so a run of n cells costs n + 1.

The keys. `{ref}` is `tenant/session_id`. No session key has a TTL: the server's sweeper deletes what is idle,
and its kernel with it.

    cellar:server           string   instance that owns the store: scripts of any other are refused (fencing). With a
                                     Redis of its own the server's lock file stands behind it; else TTL = lease
    cellar:sessions         zset     ref by expires_at: what is idle, and how many there are
    cellar:listing:{tenant} zset     session ids in order of their bytes: pages that stay put while sessions come and go
    cellar:deleted:{ref}    string   tombstone: the id is never used again. No TTL for ids that clients chose; that of
                                     idempotency keys for ids made here, which only a retry could ask for again
    cellar:session:{ref}    hash     generation, base (first generation that may be replayed), cells, bytes, created_at,
                                     expires_at, config (JSON), origin (nonce of the request), running (index),
                                     unrepeatable (its state is not to be rebuilt)
    cellar:ids:{ref}        hash     cell_id -> index
    cellar:pending:{ref}    zset     indices of pending cells
    cellar:runs:{ref}       hash     run_id -> head of the run (JSON); the rest of a run is its cells
    cellar:cell:{ref}:{i}   hash     cell_id, code, status, run_id, generation, instance, outcome (JSON)
    cellar:answer:{t}:{key} hash     digest, nonce, status, body of the first request with an idempotency key. TTL: a
                                     setting, longer than any client retries
"""

import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from cellar_client.schemas import Cell
from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.ids import Ref, is_server_made
from cellar_executor.records import (
    Accepted,
    Begun,
    CellRecord,
    Claim,
    Known,
    Quotas,
    RunHead,
    SessionConfig,
    SessionRecord,
    StartedCell,
    cell_record,
    session_record,
)

SERVER = "cellar:server"
SESSIONS = "cellar:sessions"
UNAVAILABLE = re.compile(r"(^|-)(FENCED|OOM|MISCONF|READONLY|BUSY) ")
"""Error replies, whole or quoted by the script that met them, that say: not now."""
EVERY_SCRIPT = (
    *("create", "accept", "begin", "step", "withdraw", "renew", "lose", "delete"),
    *("claim", "settle"),
)


@asynccontextmanager
async def open_store(url: str, instance: str, quotas: Quotas, *, timeout_s: float = 5) -> AsyncIterator["Store"]:
    """A store on the Redis at `url` (`redis://...` or `unix://...`); nothing is asked of it yet."""
    # No retries below us: a script that is sent twice would not know it, and each caller here decides for itself.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=32,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
    )
    redis = Redis.from_pool(pool)
    try:
        yield Store(redis, instance, quotas)
    finally:
        await redis.aclose()


class Store:
    def __init__(self, redis: Redis, instance: str, quotas: Quotas) -> None:
        self._redis = redis
        self._quotas = quotas
        self.instance = instance
        scripts = files("cellar_executor") / "scripts"
        prelude = (scripts / "prelude.lua").read_text()
        self._scripts: dict[str, AsyncScript] = {
            name: redis.register_script(
                ("" if name in ("claim", "settle") else prelude) + (scripts / f"{name}.lua").read_text()
            )
            for name in EVERY_SCRIPT
        }

    # --- the store itself ---------------------------------------------------------------------------

    async def ping(self) -> None:
        await _answer(self._redis.ping())

    async def eviction_policy(self) -> str:
        config = await _answer(self._redis.config_get("maxmemory-policy"))
        return str(config["maxmemory-policy"])

    async def take_over(self) -> None:
        """Own the store, whoever had it: for a server that knows its predecessor is dead."""
        await _answer(self._redis.set(SERVER, self.instance))

    async def renew_lease(self, lease_s: float) -> bool:
        """Own the store for `lease_s` from now. False while another server owns it."""
        lease_ms = round(lease_s * 1000)
        if await _answer(self._redis.set(SERVER, self.instance, nx=True, px=lease_ms)):
            return True
        if await _answer(self._redis.get(SERVER)) != self.instance:
            return False
        return bool(await _answer(self._redis.pexpire(SERVER, lease_ms)))

    async def release_lease(self) -> None:
        if await _answer(self._redis.get(SERVER)) == self.instance:
            await _answer(self._redis.delete(SERVER))

    # --- sessions -----------------------------------------------------------------------------------

    async def create(self, ref: Ref, config: SessionConfig, *, origin: str) -> SessionRecord:
        """Record a session. Raises `session_exists` (also for deleted ids) and `too_many_sessions`."""
        now = time.time()
        expires_at = now + config.idle_ttl_s
        reply = await self._script(
            "create",
            ref,
            ref.session_id,
            self._quotas.max_sessions,
            now,
            expires_at,
            config.model_dump_json(),
            origin,
        )
        if reply == "exists":
            raise Refusal("session_exists")
        if reply == "full":
            raise Refusal("too_many_sessions")
        return SessionRecord(ref, config, 1, 1, now, expires_at, cells_total=0, cells_pending=0, unrepeatable=False)

    async def origin(self, ref: Ref) -> str | None:
        """Nonce of the request that made the session; None when there is no such session."""
        origin: str | None = await _answer(self._redis.hget(f"cellar:session:{ref}", "origin"))
        return origin

    async def session(self, ref: Ref) -> SessionRecord:
        """Raises `session_not_found`."""
        return (await self._sessions([ref]))[0]

    async def list_sessions(self, tenant: str, after: str | None, limit: int) -> list[SessionRecord]:
        """The tenant's sessions in order of their ids, from the first behind `after`."""
        start = "-" if after is None else f"({after}"
        ids = await _answer(self._redis.zrangebylex(f"cellar:listing:{tenant}", start, "+", 0, limit))
        return await self._sessions([Ref(tenant, session_id) for session_id in ids], skip_missing=True)

    async def count_sessions(self) -> int:
        return int(await _answer(self._redis.zcard(SESSIONS)))

    async def new_generation(self, ref: Ref, generation: int, idle_ttl_s: float, *, reset: bool) -> None:
        mode = "reset" if reset else "replay"
        if await self._script("renew", ref, time.time() + idle_ttl_s, generation, mode) == "missing":
            raise Refusal("session_not_found")

    async def mark_lost(self, ref: Ref) -> None:
        await self._script("lose", ref)

    async def delete(self, ref: Ref, *, only_if_expired: bool = False) -> bool:
        """Delete a session for ever; False when there was nothing to delete (or it is in use again)."""
        tombstone_ttl_s = self._quotas.answer_ttl_s if is_server_made(ref.session_id) else ""
        expired_by = time.time() if only_if_expired else ""
        return bool(await self._script("delete", ref, ref.session_id, tombstone_ttl_s, expired_by) == "deleted")

    async def expired(self) -> list[Ref]:
        refs = await _answer(self._redis.zrangebyscore(SESSIONS, "-inf", time.time(), 0, 100))
        return [Ref.parse(ref) for ref in refs]

    # --- cells --------------------------------------------------------------------------------------

    async def accept(self, ref: Ref, cells: Sequence[tuple[str, str]], idle_ttl_s: float) -> Accepted:
        """Append cells (id, code) to the log, all or none; cells that are there already are found.

        Raises `session_not_found`, `idempotency_mismatch`, `too_many_cells`.
        """
        quotas = self._quotas
        flat = [part for cell in cells for part in cell]
        reply = await self._script(
            "accept", ref, time.time() + idle_ttl_s, quotas.max_pending_cells, quotas.max_log_bytes, *flat
        )
        _check(reply[0])
        return Accepted(indices=reply[2], cells_before=reply[1])

    async def begin(
        self, ref: Ref, head: RunHead, idle_ttl_s: float, *, bound: int | None, cell: tuple[str, str] | None
    ) -> Begun | Known:
        """Begin a run over what is pending up to index `bound`, its own `cell` (id, code) being accepted first.

        `bound` None means all there is. Whoever calls has the session's turn. Raises as `accept` does.
        """
        quotas = self._quotas
        reply = await self._script(
            "begin",
            ref,
            time.time() + idle_ttl_s,
            head.run_id,
            head.model_dump_json(),
            "" if bound is None else bound,
            head.generation,
            quotas.max_pending_cells,
            quotas.max_log_bytes,
            *(cell or ()),
        )
        _check(reply[0])
        if reply[0] == "begun":
            return Begun(bound=reply[1], first=next(iter(_started(reply[2:])), None))
        return Known(index=reply[1] if reply[0] == "existing" else None)

    async def step(
        self,
        ref: Ref,
        head: RunHead,
        cell: Cell,
        bound: int,
        idle_ttl_s: float,
        *,
        go_on: bool,
        repeatable: bool = True,
    ) -> list[StartedCell]:
        """Finish `cell`; then start the next cell of the run (`go_on`), or skip all that are left. Safe to repeat.

        `repeatable` False: the kernel lives on with state that running the cell again would not give.
        Returns the started cell (or none), or the skipped ones. Raises `session_not_found`.
        """
        outcome = cell.model_dump_json(include={"stdout", "stderr", "result", "error", "duration_s", "truncated"})
        reply = await self._script(
            "step",
            ref,
            time.time() + idle_ttl_s,
            cell.index,
            head.run_id,
            cell.status,
            outcome,
            head.generation,
            bound,
            "next" if go_on else "skip",
            "repeatable" if repeatable else "unrepeatable",
        )
        _check(reply[0])
        return _started(reply[1:])

    async def withdraw(self, ref: Ref, cell_id: str, idle_ttl_s: float) -> CellRecord:
        """Raises `session_not_found`, `cell_not_found`, `cell_not_pending`."""
        reply = await self._script("withdraw", ref, time.time() + idle_ttl_s, cell_id)
        _check(reply[0])
        return (await self.cells(ref, [reply[1]]))[0]

    async def cell(self, ref: Ref, cell_id: str) -> CellRecord:
        record = await self.find_cell(ref, cell_id)
        if record is None:
            raise Refusal("cell_not_found")
        return record

    async def find_cell(self, ref: Ref, cell_id: str) -> CellRecord | None:
        index = await _answer(self._redis.hget(f"cellar:ids:{ref}", cell_id))
        return None if index is None else (await self.cells(ref, [int(index)]))[0]

    async def cells(self, ref: Ref, indices: Sequence[int]) -> list[CellRecord]:
        """Cells by index. Raises `session_not_found` when the session is deleted meanwhile."""
        async with self._redis.pipeline() as pipe:
            for index in indices:
                pipe.hgetall(f"cellar:cell:{ref}:{index}")
            rows = await _answer(pipe.execute())
        if not all(rows):
            raise Refusal("session_not_found")
        return [cell_record(index, row, self.instance) for index, row in zip(indices, rows, strict=True)]

    async def has_run(self, ref: Ref, run_id: str) -> bool:
        return bool(await _answer(self._redis.hexists(f"cellar:runs:{ref}", run_id)))

    async def run(self, ref: Ref, run_id: str) -> tuple[RunHead, list[CellRecord]]:
        """A run's head and cells. Raises `session_not_found`, `run_not_found`."""
        record = await self.session(ref)
        head = await _answer(self._redis.hget(f"cellar:runs:{ref}", run_id))
        if head is None:
            raise Refusal("run_not_found")
        cells = await self.cells(ref, range(record.cells_total))
        return RunHead.model_validate_json(head), [cell for cell in cells if cell.run_id == run_id]

    # --- idempotency keys ---------------------------------------------------------------------------

    async def claim(self, name: str, digest: str, nonce: str) -> Claim:
        reply = await self._bare_script("claim", name, digest, nonce, self._quotas.answer_ttl_s)
        if reply[0] == "answered":
            return Claim("answered", reply[1], int(reply[2]), reply[3])
        return Claim(*reply)

    async def settle(self, name: str, status: int, body: str) -> None:
        await self._bare_script("settle", name, status, body, self._quotas.answer_ttl_s)

    async def unclaim(self, name: str) -> None:
        await _answer(self._redis.delete(f"cellar:answer:{name}"))

    # --- below --------------------------------------------------------------------------------------

    async def _script(self, name: str, ref: Ref, *args: str | float) -> Any:
        keys = [
            SERVER,
            SESSIONS,
            f"cellar:listing:{ref.tenant}",
            f"cellar:deleted:{ref}",
            f"cellar:session:{ref}",
            f"cellar:ids:{ref}",
            f"cellar:pending:{ref}",
            f"cellar:runs:{ref}",
            f"cellar:cell:{ref}:",
        ]
        return await _answer(self._scripts[name](keys, [self.instance, str(ref), *args]))

    async def _bare_script(self, name: str, answer: str, *args: str | float) -> Any:
        return await _answer(self._scripts[name]([f"cellar:answer:{answer}"], args))

    async def _sessions(self, refs: Sequence[Ref], *, skip_missing: bool = False) -> list[SessionRecord]:
        async with self._redis.pipeline() as pipe:
            for ref in refs:
                pipe.hgetall(f"cellar:session:{ref}")
                pipe.zcard(f"cellar:pending:{ref}")
            rows = await _answer(pipe.execute())
        if not skip_missing and not all(rows[::2]):
            raise Refusal("session_not_found")
        return [
            session_record(ref, row, pending)
            for ref, row, pending in zip(refs, rows[::2], rows[1::2], strict=True)
            if row
        ]


async def _answer(reply: Any) -> Any:
    """What Redis answers; its client has no narrower type. Raises `StoreUnavailable`, also when it cannot write."""
    try:
        return await reply
    except ResponseError as error:
        if isinstance(error, (OutOfMemoryError, ReadOnlyError)) or UNAVAILABLE.search(str(error)):
            raise StoreUnavailable(str(error)) from error
        raise
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"{type(error).__name__}") from error


def _check(reply: str) -> None:
    match reply:
        case "missing":
            raise Refusal("session_not_found")
        case "mismatch":
            raise Refusal("idempotency_mismatch", "this cell id was given with another code")
        case "too_many_pending":
            raise Refusal("too_many_cells", "too many cells are pending in this session")
        case "log_full":
            raise Refusal("too_many_cells", "the session's cells and their outputs have reached the size that is kept")
        case "no_cell":
            raise Refusal("cell_not_found")
        case "not_pending":
            raise Refusal("cell_not_pending")
        case "refused":
            raise RuntimeError("a finished cell was to be given another outcome")


def _started(flat: Sequence[Any]) -> list[StartedCell]:
    return [StartedCell(*flat[i : i + 3]) for i in range(0, len(flat), 3)]

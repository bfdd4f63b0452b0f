"""Sessions: made, copied, renewed, deleted, listed."""

import time
from collections.abc import Sequence

from cellar_executor.errors import Refusal
from cellar_executor.ids import Ref, is_server_made
from cellar_executor.records import SessionConfig, SessionRecord, session_record
from cellar_executor.store.connection import SESSIONS, Connection, answered, check, from_now


class SessionRecords(Connection):
    async def create(self, ref: Ref, config: SessionConfig, *, origin: str) -> SessionRecord:
        """Record a session. Raises `session_exists` (also for deleted ids) and `too_many_sessions`."""
        now, expires_at = time.time(), from_now(config.idle_ttl_s)
        quota = self._quotas.max_sessions
        check(
            await self._script("create", ref, ref.session_id, quota, now, expires_at, config.model_dump_json(), origin)
        )
        return SessionRecord(ref, config, 1, 1, now, expires_at, cells_total=0, cells_pending=0, unrepeatable=False)

    async def fork(self, ref: Ref, copies: Sequence[Ref], idle_ttl_s: float, *, origin: str) -> list[SessionRecord]:
        """Record copies of a session and its log, all or none. Whoever calls has the session's turn.

        Raises `session_not_found`, `session_exists`, `too_many_sessions`.
        """
        flat = [part for copy in copies for part in (str(copy), copy.session_id)]
        quota = self._quotas.max_sessions
        check(await self._script("fork", ref, quota, time.time(), from_now(idle_ttl_s), origin, *flat, others=copies))
        return await self.sessions(copies)

    async def origins(self, refs: Sequence[Ref]) -> list[str | None]:
        """Of each session the nonce of the request that made it; None where there is no such session."""
        async with self._redis.pipeline() as pipe:
            for ref in refs:
                pipe.hget(f"cellar:session:{ref}", "origin")
            origins: list[str | None] = await answered(pipe.execute())
        return origins

    async def session(self, ref: Ref) -> SessionRecord:
        """Raises `session_not_found`."""
        return (await self.sessions([ref]))[0]

    async def sessions(self, refs: Sequence[Ref], *, skip_missing: bool = False) -> list[SessionRecord]:
        """Raises `session_not_found`."""
        async with self._redis.pipeline() as pipe:
            for ref in refs:
                pipe.hgetall(f"cellar:session:{ref}")
                pipe.zcard(f"cellar:pending:{ref}")
            rows = await answered(pipe.execute())
        if not skip_missing and not all(rows[::2]):
            raise Refusal("session_not_found")
        return [
            session_record(ref, row, pending)
            for ref, row, pending in zip(refs, rows[::2], rows[1::2], strict=True)
            if row
        ]

    async def list_sessions(self, tenant: str, after: str | None, limit: int) -> list[SessionRecord]:
        """The tenant's sessions in order of their ids, from the first behind `after`."""
        start = "-" if after is None else f"({after}"
        ids = await answered(self._redis.zrangebylex(f"cellar:listing:{tenant}", start, "+", 0, limit))
        return await self.sessions([Ref(tenant, session_id) for session_id in ids], skip_missing=True)

    async def count_sessions(self) -> int:
        return int(await answered(self._redis.zcard(SESSIONS)))

    async def touch(self, ref: Ref, idle_ttl_s: float) -> None:
        """The session is in use. Raises `session_not_found`."""
        check(await self._script("touch", ref, from_now(idle_ttl_s)))

    async def new_generation(self, ref: Ref, generation: int, idle_ttl_s: float, *, reset: bool) -> None:
        """Raises `session_not_found`."""
        mode = "reset" if reset else "replay"
        check(await self._script("renew", ref, from_now(idle_ttl_s), generation, mode))

    async def mark_lost(self, ref: Ref) -> None:
        await self._script("lose", ref)

    async def delete(self, ref: Ref, *, only_if_expired: bool = False) -> bool:
        """Delete a session for ever; False when there was nothing to delete (or it is in use again)."""
        tombstone_ttl_s = self._quotas.answer_ttl_s if is_server_made(ref.session_id) else ""
        expired_by = time.time() if only_if_expired else ""
        return bool(await self._script("delete", ref, ref.session_id, tombstone_ttl_s, expired_by) == "deleted")

    async def expired(self) -> list[Ref]:
        refs = await answered(self._redis.zrangebyscore(SESSIONS, "-inf", time.time(), 0, 100))
        return [Ref.parse(ref) for ref in refs]

"""Sessions: made, copied, renewed, deleted, listed."""

import time
from collections.abc import Sequence

from cellar_executor.errors import Refusal
from cellar_executor.ids import Owned, Ref, is_server_made
from cellar_executor.records import SessionConfig, SessionRecord, session_record
from cellar_executor.store.connection import SESSIONS, Connection, answered, from_now


class SessionRecords(Connection):
    async def create(self, ref: Ref, config: SessionConfig, *, origin: str, max_sessions: int) -> SessionRecord:
        """Record a session of a tenant that may have so many, owned by this server at epoch 1.

        Raises `session_exists` (also for deleted ids) and `too_many_sessions`.
        """
        now, expires_at = time.time(), from_now(config.idle_ttl_s)
        written = config.model_dump_json()
        await self._session_script("create", ref, None, ref.session_id, max_sessions, now, expires_at, written, origin)
        return SessionRecord(
            ref=ref,
            config=config,
            owner=self.instance,
            epoch=1,
            generation=1,
            base_generation=1,
            created_at=now,
            expires_at=expires_at,
            cells_total=0,
            cells_pending=0,
            running=False,
            unrepeatable=False,
            lost=False,
        )

    async def fork(
        self, owned: Owned, copies: Sequence[Ref], idle_ttl_s: float, *, origin: str, max_sessions: int
    ) -> list[SessionRecord]:
        """Record copies of a session and its log, all or none. Whoever calls has the session's turn.

        Raises `session_not_found`, `session_exists`, `too_many_sessions`.
        """
        flat = [part for copy in copies for part in (str(copy), copy.session_id)]
        await self._script("fork", owned, max_sessions, time.time(), from_now(idle_ttl_s), origin, *flat, others=copies)
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

    async def touch(self, owned: Owned, idle_ttl_s: float) -> None:
        """The session is in use. Raises `session_not_found`."""
        await self._script("touch", owned, from_now(idle_ttl_s))

    async def new_generation(self, owned: Owned, generation: int, idle_ttl_s: float, *, reset: bool) -> None:
        """Raises `session_not_found`."""
        mode = "reset" if reset else "replay"
        await self._script("renew", owned, from_now(idle_ttl_s), generation, mode)

    async def mark_lost(self, owned: Owned) -> None:
        """Raises `session_not_found`."""
        await self._script("lose", owned)

    async def delete(self, owned: Owned, *, only_if_expired: bool = False) -> bool:
        """Delete a session for ever; False when it is in use again. Raises `session_not_found`."""
        session_id = owned.ref.session_id
        tombstone_ttl_s = self._quotas.answer_ttl_s if is_server_made(session_id) else ""
        expired_by = time.time() if only_if_expired else ""
        return bool(await self._script("delete", owned, session_id, tombstone_ttl_s, expired_by) == "deleted")

    async def expired(self) -> list[Ref]:
        refs = await answered(self._redis.zrangebyscore(SESSIONS, "-inf", time.time(), 0, 100))
        return [Ref.parse(ref) for ref in refs]

"""A session's state, built anew from its log: after its kernel died, and after an atomic run that failed.

A cell that stopped half-way while its kernel lived on, by a soft time-out or a requested interrupt, left state that
running it again would not give. A session with such a cell is lost when its kernel dies. What a cell did whose kernel
died with it is gone in any case: the cells before it are run again, and it is not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from cellar_executor.durable import recorded
from cellar_executor.errors import Refusal
from cellar_executor.kernel import Kernel
from cellar_executor.replay import Replay
from cellar_executor.sessions import LiveSession, LiveSessions
from cellar_executor.store import Store
from cellar_executor.telemetry import metrics

TRIES = 2

T = TypeVar("T")

log = logging.getLogger(__name__)


class Recovery:
    """For whoever has the session's turn."""

    def __init__(self, store: Store, sessions: LiveSessions, replay: Replay) -> None:
        self._store = store
        self._sessions = sessions
        self._replay = replay

    async def ensure_kernel(self, live: LiveSession) -> None:
        """A live kernel with the session's state.

        Raises `session_lost` where the state may not or cannot be rebuilt, `session_not_found`, `too_many_sessions`,
        `quota_exceeded`, `kernel_unavailable`, `isolation_unavailable`, `store_unavailable`, `Moved`.
        """
        if live.alive:
            return
        if live.lost:
            await self._store.session(live.ref)  # or it is not lost but deleted
        live.refuse_if_lost()
        with self._sessions.reserve(live.ref.tenant, live.config.limits.memory_mb):
            await self._rebuild(live, None)
        live.recovered = True
        log.info("session recovered", extra={"session_id": live.ref.session_id, "generation": live.generation})

    async def roll_back(self, live: LiveSession, answer: asyncio.Future[Any]) -> None:
        """The state that the log has, in a fresh kernel, whatever the session's recovery is.

        What it has now is gone in any case; when Redis is away, it is waited for (`recorded`). Else raises as above.
        """
        if live.kernel is not None:
            await live.kernel.close()
        with self._sessions.reserve(live.ref.tenant, live.config.limits.memory_mb, replaced=1):
            await self._rebuild(live, answer)
        log.info("session rolled back", extra={"session_id": live.ref.session_id, "generation": live.generation})

    async def _rebuild(self, live: LiveSession, answer: asyncio.Future[Any] | None) -> None:
        async def in_store(call: Callable[[], Awaitable[T]]) -> T:
            return await (call() if answer is None else recorded(call, answer))

        generation, ttl_s = live.generation + 1, live.config.idle_ttl_s
        kernel = await in_store(lambda: self._rebuilt(live))
        if kernel is None:
            live.unrepeatable = True
            metrics.sessions_lost.inc()
            await in_store(lambda: self._store.mark_lost(live.owned))
            raise Refusal("session_lost", "its cells could not be run again; a reset gives it a fresh namespace")
        try:
            await in_store(lambda: self._store.new_generation(live.owned, generation, ttl_s, reset=False))
            self._sessions.renew(live, kernel)
        except BaseException:
            await kernel.close()
            raise

    async def _rebuilt(self, live: LiveSession) -> Kernel | None:
        """A fresh kernel with the log played; None when that ended otherwise than before.

        A kernel that dies over it may have been killed from outside: only one that dies again is the cells' own doing.
        """
        for _ in range(TRIES):
            await self._store.touch(live.owned, live.config.idle_ttl_s)  # or the session is another server's by now
            replayed = await self._replay.log(live.ref)
            async with self._sessions.rebuilding(live) as kernel:
                if await self._replay.play(replayed, kernel):
                    return kernel
            died = not kernel.alive
            await kernel.close()
            self._sessions.insist_on(live)
            if not died:
                break
        return None

"""Idle sessions give their kernels back: after a while those that can be rebuilt, and sooner when memory is short.

A session whose kernel was given back stays as it is in Redis. One that can be rebuilt (`recovery: "replay"`) is, when
it is next used, and says `recovered`. Any other is lost by it, and says so from then on: so those go last, and only
when the choice is between an idle session and the host's memory.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal

from cellar_executor.kernels.memory import free_memory_bytes
from cellar_executor.sessions import LiveSession, LiveSessions
from cellar_executor.store import Store
from cellar_executor.telemetry import metrics

AT_ONCE = 16
"""Kernels given back in one round for want of memory: then it is looked again."""

log = logging.getLogger(__name__)


class IdleSessions:
    def __init__(
        self,
        store: Store,
        sessions: LiveSessions,
        *,
        park_after_s: float,
        min_free_bytes: int,
        free_bytes: Callable[[], int] = free_memory_bytes,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._park_after_s = park_after_s
        self._min_free_bytes = min_free_bytes
        self._free_bytes = free_bytes

    async def park(self) -> None:
        """Close the kernels of sessions that were idle for long and can be rebuilt."""
        used_before = time.monotonic() - self._park_after_s
        for live in self._idle():
            if live.can_be_rebuilt and live.last_used < used_before:
                await self._give_back(live, "parked")

    async def relieve(self) -> None:
        """While memory is short close kernels of idle sessions, longest idle first; take no more when none is left."""
        short = self._free_bytes() < self._min_free_bytes
        idle = self._idle() if short else []
        idle.sort(key=lambda live: (not live.can_be_rebuilt, live.last_used))
        for live in idle[:AT_ONCE]:
            await self._give_back(live, "memory")
        self._sessions.short_of_memory = short and not idle

    def _idle(self) -> list[LiveSession]:
        return [live for live in self._sessions if live.alive and not live.in_line]

    async def _give_back(self, live: LiveSession, reason: Literal["parked", "memory"]) -> None:
        if live.in_line:  # it was idle when it was chosen
            return
        async with live.my_turn():
            if live.kernel is not None:
                await live.kernel.close()
            if live.lost:
                await self._store.mark_lost(live.owned)
        metrics.sessions_evicted.labels(reason).inc()
        names = {"session_id": live.ref.session_id, "status": live.state}
        log.info("an idle session's kernel was closed (%s)", reason, extra=names)

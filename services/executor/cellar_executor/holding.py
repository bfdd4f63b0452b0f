"""Which sessions this server holds: taken when somebody asks for them, given up in order, or because it has to."""

import asyncio
import logging
from collections.abc import Sequence

from cellar_client.schemas import Session
from cellar_executor.background import Background
from cellar_executor.errors import Moved, Refusal
from cellar_executor.ids import Ref
from cellar_executor.records import SessionRecord
from cellar_executor.runner import Runner
from cellar_executor.sessions import LiveSession, LiveSessions, wire
from cellar_executor.store import Store
from cellar_executor.telemetry import metrics

log = logging.getLogger(__name__)


class Holding:
    def __init__(self, store: Store, sessions: LiveSessions, runner: Runner, background: Background) -> None:
        self._store = store
        self._sessions = sessions
        self._runner = runner
        self._background = background
        self._taking: dict[Ref, asyncio.Task[LiveSession]] = {}
        store.on_moved = sessions.abandon

    async def elsewhere(self, ref: Ref) -> str | None:
        """URL of the live server that holds the session, if that is another one."""
        return None if self._sessions.get(ref) is not None else await self._store.elsewhere(ref)

    async def get(self, ref: Ref) -> LiveSession:
        """The session as this server holds it, taken over if no live server does.

        Raises `session_not_found`, `Moved` while another server holds it, `shutting_down`.
        """
        live = self._sessions.get(ref)
        if live is not None:
            return live
        if ref not in self._taking:
            self._taking[ref] = self._background.start(self._take(ref))
            self._taking[ref].add_done_callback(lambda _: self._taking.pop(ref))
        return await asyncio.shield(self._taking[ref])

    async def wired(self, records: Sequence[SessionRecord]) -> list[Session]:
        """Sessions as they go over the wire, whoever holds them."""
        held = [self._sessions.get(record.ref) for record in records]
        living = await self._store.instances() if None in held else {}
        return [wire(record, live, living) for record, live in zip(records, held, strict=True)]

    def forget_all(self) -> None:
        """The lease had ended, so others may have taken them: each is taken anew when it is next asked for."""
        for live in self._sessions:
            self._sessions.abandon(live.owned)

    def hand_over_all(self) -> None:
        """Behind what runs in each its kernel is closed, and it is free for another server, or this one's successor."""
        for live in self._sessions:
            self._background.start(self._hand_over(live))

    async def expire(self) -> None:
        """Delete the sessions that were idle for too long."""
        if self._runner.draining:
            return
        for ref in await self._store.expired():
            try:
                live = await self.get(ref)
                if live.in_line or not await self._store.delete(live.owned, only_if_expired=True):
                    continue
            except Moved:
                continue  # another server holds it, and sees to it
            except Refusal as refusal:
                if refusal.code != "session_not_found":
                    raise
            await self._sessions.close(ref)
            log.info("session expired", extra={"session_id": ref.session_id})

    async def _take(self, ref: Ref) -> LiveSession:
        if self._runner.draining:
            raise Refusal("shutting_down")
        record, queued = await self._store.take(ref), await self._store.queued_runs(ref)
        live = self._sessions.adopt(record)
        self._runner.line_up(live, queued)
        metrics.sessions_taken_over.inc()
        if live.lost:
            metrics.sessions_lost.inc()
        log.info("session taken over", extra={"session_id": ref.session_id, "epoch": live.epoch})
        return live

    async def _hand_over(self, live: LiveSession) -> None:
        async with live.my_turn():
            if live.kernel is not None:
                await live.kernel.close()
            self._sessions.abandon(live.owned)
            try:
                await self._store.release(live.owned)
            except Refusal as refusal:  # then it is free when the lease ends
                log.warning("session not handed over: %s", refusal, extra={"session_id": live.ref.session_id})

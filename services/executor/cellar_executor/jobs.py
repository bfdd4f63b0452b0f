"""A run on its way, as the runner and what runs its cells know it."""

import asyncio
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from cellar_client.schemas import OnError, Run
from cellar_executor.errors import Refusal
from cellar_executor.events import RunEvents
from cellar_executor.ids import Ref
from cellar_executor.presence import Presence
from cellar_executor.sessions import LiveSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    live: LiveSession
    run_id: str
    cell: tuple[str, str] | None
    """Id and code of the run's own cell."""
    timeout_s: float
    on_error: OnError
    atomic: bool
    bound: int | None = None
    """Index of the last cell that it may run, where the run is queued in the store; else it is settled on arrival."""
    presence: Presence | None = None
    """Of the one client that could hear of the run; None where others can ask for it."""
    events: RunEvents | None = None
    arrived: float = field(default_factory=time.monotonic)
    answer: asyncio.Future[Run] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def name(self) -> tuple[Ref, str]:
        return self.live.ref, self.run_id

    @property
    def gone(self) -> bool:
        """Nobody can hear of the run any more."""
        return self.presence is not None and self.presence.gone

    def interrupted_when_gone(self) -> AbstractContextManager[None]:
        return nullcontext() if self.presence is None else self.presence.or_else(self.live.interrupt)

    def refuse_what_cannot_be(self) -> None:
        """Raises `session_lost`, `not_repeatable`."""
        self.live.refuse_if_lost()
        if self.atomic and self.live.unrepeatable:
            raise Refusal("not_repeatable", "a failed run could not be rolled back: a cell was stopped half-way before")

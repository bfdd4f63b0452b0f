"""The sessions this server holds in memory: their kernels, and the order in which runs take turns."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cellar_client.schemas import Limits, Session, SessionStatus
from cellar_executor.admission import AnyTier, isolation_now
from cellar_executor.errors import Refusal
from cellar_executor.ids import Ref
from cellar_executor.kernel import Kernel, KernelUnavailable, Supervisor
from cellar_executor.records import SessionConfig, SessionRecord


@dataclass
class LiveSession:
    """One session as this server knows it. Without a live kernel its state is gone, whatever Redis remembers."""

    ref: Ref
    config: SessionConfig
    generation: int
    kernel: Kernel | None = None
    unrepeatable: bool = False
    """Its state could not be rebuilt, or could not be if its kernel died; only a reset helps."""
    interrupted: bool = False
    """The cell that runs, or ran last, was interrupted by request."""
    recovered: bool = False
    """Its state was rebuilt and no run has said so yet."""
    in_line: int = 0
    """Whoever has the turn or waits for it: runs, resets, forks, changes of files."""
    arrival: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a cell is accepted and gets its place in line, so that turns follow the order of acceptance."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def alive(self) -> bool:
        return self.kernel is not None and self.kernel.alive

    @property
    def lost(self) -> bool:
        return not self.alive and (self.unrepeatable or self.config.recovery == "fail")

    def refuse_if_lost(self) -> None:
        if self.lost:
            raise Refusal("session_lost", "a reset gives it a fresh namespace")

    def interrupt(self) -> None:
        self.interrupted = True
        if self.kernel is not None:
            self.kernel.interrupt()

    def renew(self, kernel: Kernel) -> None:
        """A fresh kernel: one generation more."""
        self.kernel = kernel
        self.generation += 1
        self.unrepeatable = False

    @contextlib.asynccontextmanager
    async def my_turn(self) -> AsyncIterator[None]:
        """First come, first served."""
        self.in_line += 1
        try:
            async with self.turn:
                yield
        finally:
            self.in_line -= 1


class LiveSessions:
    """Every `LiveSession` of this server, and the one place that starts and closes kernels."""

    def __init__(self, supervisor: Supervisor, max_kernels: int) -> None:
        self._supervisor = supervisor
        self._max_kernels = max_kernels
        self._live: dict[Ref, LiveSession] = {}
        self._lone: set[Kernel] = set()
        self._reserved = 0

    @property
    def tier(self) -> AnyTier:
        """Of sessions that do not ask for another one."""
        return self._supervisor.isolation.tier

    def get(self, ref: Ref) -> LiveSession | None:
        return self._live.get(ref)

    async def open(self, ref: Ref, config: SessionConfig) -> LiveSession:
        """Hold a new session with a fresh kernel. Raises `session_exists`, `kernel_unavailable`."""
        kernel = await self.fresh_kernel(config)
        live = LiveSession(ref, config, generation=1, kernel=kernel)
        try:
            self.hold([live])
        except Refusal:
            await kernel.close()
            raise
        return live

    def hold(self, new: Sequence[LiveSession]) -> None:
        """Hold new sessions, all or none. Raises `session_exists`."""
        if any(live.ref in self._live for live in new):
            raise Refusal("session_exists")
        self._live |= {live.ref: live for live in new}

    def adopt(self, record: SessionRecord) -> LiveSession:
        """Hold a session whose kernel died with an earlier server."""
        earlier = LiveSession(record.ref, record.config, record.generation, unrepeatable=record.unrepeatable)
        return self._live.setdefault(record.ref, earlier)

    @contextlib.contextmanager
    def reserve(self, kernels: int = 1, *, replaced: int = 0) -> Iterator[None]:
        """Room for kernels that no session holds (yet), some of which take the place of `replaced` others.

        Raises `too_many_sessions`.
        """
        held = sum(live.alive for live in self._live.values()) + self._reserved
        if held + kernels - replaced > self._max_kernels:
            raise Refusal("too_many_sessions")
        self._reserved += kernels
        try:
            yield
        finally:
            self._reserved -= kernels

    async def start_kernel(self, limits: Limits, runtime: str, seed: int | None, isolation: AnyTier) -> Kernel:
        """Raises `kernel_unavailable`, `isolation_unavailable`."""
        tier = isolation_now(self.tier, isolation)
        try:
            return await self._supervisor.start(
                limits=limits, runtime=runtime, seed=seed, tier=None if tier == "none" else tier
            )
        except KernelUnavailable as error:
            raise Refusal("kernel_unavailable", str(error)) from error

    @contextlib.asynccontextmanager
    async def lone_kernel(
        self, limits: Limits, runtime: str, seed: int | None, isolation: AnyTier
    ) -> AsyncIterator[Kernel]:
        """A kernel of no session, closed at the end. Raises as `reserve` and `start_kernel` do."""
        with self.reserve():
            kernel = await self.start_kernel(limits, runtime, seed, isolation)
            self._lone.add(kernel)
            try:
                yield kernel
            finally:
                self._lone.discard(kernel)
                await kernel.close()

    async def fresh_kernel(self, config: SessionConfig) -> Kernel:
        return await self.start_kernel(config.limits, config.runtime, config.seed, config.isolation)

    def renew(self, live: LiveSession, kernel: Kernel) -> None:
        """Give the session a fresh kernel. Raises `session_not_found` when it was deleted meanwhile."""
        if self._live.get(live.ref) is not live:
            raise Refusal("session_not_found")
        live.renew(kernel)

    async def close(self, ref: Ref) -> None:
        live = self._live.pop(ref, None)
        if live is not None and live.kernel is not None:
            await live.kernel.close()

    async def close_all(self) -> None:
        await asyncio.gather(*(self.close(ref) for ref in list(self._live)), *(k.close() for k in self._lone))


def wire(record: SessionRecord, live: LiveSession | None) -> Session:
    """A session as it goes over the wire."""
    return Session(
        session_id=record.ref.session_id,
        status=_status(record, live),
        generation=record.generation,
        created_at=datetime.fromtimestamp(record.created_at, UTC),
        expires_at=datetime.fromtimestamp(record.expires_at, UTC),
        cells_total=record.cells_total,
        cells_pending=record.cells_pending,
        runtime=record.config.runtime,
        isolation=record.config.isolation,
        limits=record.config.limits,
        recovery=record.config.recovery,
        seed=record.config.seed,
        metadata=record.config.metadata,
    )


def _status(record: SessionRecord, live: LiveSession | None) -> SessionStatus:
    if live is not None and live.turn.locked():
        return "running"
    if live is not None and live.alive:
        return "ready"
    return "lost" if record.unrepeatable or record.config.recovery == "fail" else "ready"

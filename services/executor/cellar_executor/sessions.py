"""The sessions this server holds in memory: their kernels, and the order in which runs take turns."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from cellar_client.schemas import Limits, Session, SessionStatus
from cellar_executor.admission import AnyTier, isolation_now
from cellar_executor.background import Background
from cellar_executor.errors import Moved, Refusal
from cellar_executor.ids import Owned, Ref
from cellar_executor.kernel import Kernel, KernelUnavailable, Supervisor
from cellar_executor.records import SessionConfig, SessionRecord
from cellar_executor.tenancy.tenants import Tenants


@dataclass
class LiveSession:
    """One session as this server knows it. Without a live kernel its state is gone, whatever Redis remembers."""

    ref: Ref
    config: SessionConfig
    epoch: int
    """At which this server holds it."""
    generation: int
    kernel: Kernel | None = None
    rebuilding: Kernel | None = None
    """The one in which its log is played again; it takes the kernel's place when that is done."""
    unrepeatable: bool = False
    """Its state could not be rebuilt, or could not be if its kernel died; only a reset helps."""
    interrupted: bool = False
    """The cell that runs, or ran last, was interrupted by request."""
    deleted: bool = False
    recovered: bool = False
    """Its state was rebuilt and no run has said so yet."""
    last_used: float = field(default_factory=time.monotonic)
    """When its last turn ended."""
    in_line: int = 0
    """Whoever has the turn or waits for it: runs, resets, forks, changes of files."""
    arrival: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a cell is accepted and gets its place in line, so that turns follow the order of acceptance."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def owned(self) -> Owned:
        return Owned(self.ref, self.epoch)

    @property
    def alive(self) -> bool:
        return self.kernel is not None and self.kernel.alive

    @property
    def lost(self) -> bool:
        return not self.alive and not self.can_be_rebuilt

    @property
    def can_be_rebuilt(self) -> bool:
        return self.config.recovery == "replay" and not self.unrepeatable

    @property
    def state(self) -> Literal["ready", "running", "parked", "lost"]:
        """`parked`: its kernel will be made again when it is next used."""
        if self.turn.locked():
            return "running"
        return "ready" if self.alive else "lost" if self.lost else "parked"

    def refuse_if_lost(self) -> None:
        if self.lost:
            raise Refusal("session_lost", "a reset gives it a fresh namespace")

    def interrupt(self) -> None:
        self.interrupted = True
        if self.kernel is not None:
            self.kernel.interrupt()

    def kernels(self) -> list[Kernel]:
        return [kernel for kernel in (self.kernel, self.rebuilding) if kernel is not None]

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
            self.last_used = time.monotonic()


class LiveSessions:
    """Every `LiveSession` of this server, and the one place that starts and closes kernels."""

    def __init__(self, supervisor: Supervisor, max_kernels: int, tenants: Tenants, background: Background) -> None:
        self._supervisor = supervisor
        self._tenants = tenants
        self._max_kernels = max_kernels
        self._background = background
        self._live: dict[Ref, LiveSession] = {}
        self._lone: set[Kernel] = set()
        self.short_of_memory = False
        """No more kernels for now."""
        self._reserved: Counter[str] = Counter()
        """Kernels of no session (yet), by tenant."""
        self._reserved_mb: Counter[str] = Counter()
        """What they may use, by tenant."""

    @property
    def tier(self) -> AnyTier:
        """Of sessions that do not ask for another one."""
        return self._supervisor.isolation.tier

    def __iter__(self) -> Iterator[LiveSession]:
        return iter(list(self._live.values()))

    def get(self, ref: Ref) -> LiveSession | None:
        return self._live.get(ref)

    async def open(self, ref: Ref, config: SessionConfig) -> LiveSession:
        """Hold a new session with a fresh kernel. Raises `session_exists`, `kernel_unavailable`."""
        kernel = await self.fresh_kernel(config)
        live = LiveSession(ref, config, epoch=1, generation=1, kernel=kernel)
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
        """Hold a session that was taken over: its kernel died with another server."""
        live = LiveSession(record.ref, record.config, record.epoch, record.generation, unrepeatable=record.unrepeatable)
        self._live[record.ref] = live
        return live

    def abandon(self, owned: Owned) -> None:
        """Another server has taken the session over: it is not held here any more."""
        live = self._live.get(owned.ref)
        if live is not None and live.epoch == owned.epoch:
            del self._live[owned.ref]
            for kernel in live.kernels():
                self.close_soon(kernel)

    def close_soon(self, kernel: Kernel) -> None:
        self._background.start(kernel.close())

    @contextlib.contextmanager
    def reserve(self, tenant: str, memory_mb: int, kernels: int = 1, *, replaced: int = 0) -> Iterator[None]:
        """Room for kernels that no session holds (yet), some of which take the place of `replaced` others.

        `memory_mb` is what each of them may use. Raises `too_many_sessions`, `quota_exceeded`.
        """
        held = sum(live.alive for live in self._live.values()) + self._reserved.total()
        if held + kernels - replaced > self._max_kernels:
            raise Refusal("too_many_sessions", f"this server holds {held} kernels, of {self._max_kernels} at most")
        if self.short_of_memory and kernels > replaced:
            raise Refusal("too_many_sessions", "the server is short of memory")
        self._refuse_memory_beyond_quota(tenant, memory_mb * (kernels - replaced))
        self._reserved[tenant] += kernels
        self._reserved_mb[tenant] += memory_mb * kernels
        try:
            yield
        finally:
            self._reserved[tenant] -= kernels
            self._reserved_mb[tenant] -= memory_mb * kernels

    def _refuse_memory_beyond_quota(self, tenant: str, more_mb: int) -> None:
        bound_mb = self._tenants.quota(tenant).memory_mb
        if bound_mb is None:
            return
        held = [live for live in self._live.values() if live.ref.tenant == tenant and live.alive]
        held_mb = sum(live.config.limits.memory_mb for live in held) + self._reserved_mb[tenant]
        if held_mb + more_mb > bound_mb:
            raise Refusal("quota_exceeded", f"this tenant's kernels may use {bound_mb} MB, and {held_mb} are taken")

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
        self, tenant: str, limits: Limits, runtime: str, seed: int | None, isolation: AnyTier
    ) -> AsyncIterator[Kernel]:
        """A kernel of no session, closed at the end. Raises as `reserve` and `start_kernel` do."""
        with self.reserve(tenant, limits.memory_mb):
            kernel = await self.start_kernel(limits, runtime, seed, isolation)
            self._lone.add(kernel)
            try:
                yield kernel
            finally:
                self._lone.discard(kernel)
                await kernel.close()

    async def fresh_kernel(self, config: SessionConfig) -> Kernel:
        return await self.start_kernel(config.limits, config.runtime, config.seed, config.isolation)

    @contextlib.asynccontextmanager
    async def rebuilding(self, live: LiveSession) -> AsyncIterator[Kernel]:
        """A fresh kernel to play the session's log in. It ends with the session's stay here, and when the block fails.

        Raises `session_not_found`, `Moved` when the session is not held any more, and as `start_kernel` does.
        """
        kernel = await self.fresh_kernel(live.config)
        try:
            self.insist_on(live)
            live.rebuilding = kernel
            yield kernel
        except BaseException:
            await kernel.close()
            raise
        finally:
            live.rebuilding = None

    def renew(self, live: LiveSession, kernel: Kernel) -> None:
        """Give the session a fresh kernel. Raises `session_not_found`, `Moved` when it is not held any more."""
        self.insist_on(live)
        live.renew(kernel)

    def insist_on(self, live: LiveSession) -> None:
        """Raises `session_not_found`, `Moved` when the session is not held any more."""
        if self._live.get(live.ref) is not live:
            raise Refusal("session_not_found") if live.deleted else Moved()

    async def close(self, ref: Ref) -> None:
        """The session was deleted."""
        live = self._live.pop(ref, None)
        if live is not None:
            live.deleted = True
            await asyncio.gather(*(kernel.close() for kernel in live.kernels()))

    async def close_all(self) -> None:
        await asyncio.gather(*(self.close(ref) for ref in list(self._live)), *(k.close() for k in self._lone))


def wire(record: SessionRecord, live: LiveSession | None, living: Collection[str] = ()) -> Session:
    """A session as it goes over the wire; `living` are the servers that may hold it where this one does not."""
    return Session(
        session_id=record.ref.session_id,
        status=_status(record, live, living),
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


def _status(record: SessionRecord, live: LiveSession | None, living: Collection[str]) -> SessionStatus:
    if live is None and record.owner in living:  # as far as the log tells; its owner knows better
        return "running" if record.running else "lost" if record.lost else "ready"
    if live is None:
        return "lost" if record.unrepeatable or record.config.recovery == "fail" else "ready"
    if live.turn.locked():
        return "running"
    if live.alive:
        return "ready"
    return "lost" if record.unrepeatable or record.config.recovery == "fail" else "ready"

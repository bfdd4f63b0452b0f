"""Whose run is next when there is more to run than room: tenants in turn, and no tenant's queue without bound."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass

from cellar_executor.errors import Refusal
from cellar_executor.tenancy.tenants import Tenants

MAX_WAITING = 1024
"""Runs of one tenant that wait on this server, for their session's turn or for room."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run stands in its tenant's line."""

    slot: Callable[[], AbstractAsyncContextManager[None]]
    """Room to run, which is waited for."""


class FairQueue:
    """Room for `slots` runs at once, and for `quota(tenant).running` of each tenant.

    Freed room goes to the tenants that wait in turn, and within a tenant to the run that came first: a tenant with one
    run to do waits for one run of each other tenant at most, however many those have waiting.

    Attributes:
        waiting: runs that have arrived and do not run, by tenant.
        running: runs that have a slot, by tenant.
    """

    def __init__(self, tenants: Tenants, slots: int) -> None:
        self.waiting: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self._tenants = tenants
        self._free = slots
        self._lines: dict[str, OrderedDict[asyncio.Future[None], None]] = {}
        self._turns: OrderedDict[str, None] = OrderedDict()
        """Tenants that wait for room, the next one first. Who waits for a run of its own to end may be missing."""

    @contextmanager
    def place(self, tenant: str) -> Iterator[Place]:
        """A place for one run, from its arrival to its end.

        Raises `quota_exceeded` when too many wait already: before anything was done for the run, so that it can be
        asked for again.
        """
        if self.waiting[tenant] >= MAX_WAITING:
            raise Refusal("quota_exceeded", f"{MAX_WAITING} runs of this tenant are waiting")
        self.waiting[tenant] += 1
        try:
            yield Place(lambda: self._room(tenant))
        finally:
            _take_one(self.waiting, tenant)

    @asynccontextmanager
    async def slot(self, tenant: str) -> AsyncIterator[None]:
        """A place and room for one run, which is waited for. Raises `quota_exceeded` as `place` does."""
        with self.place(tenant) as place:
            async with place.slot():
                yield

    @asynccontextmanager
    async def _room(self, tenant: str) -> AsyncIterator[None]:
        await self._enter(tenant)
        try:
            yield
        finally:
            self._leave(tenant)

    async def _enter(self, tenant: str) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, OrderedDict())[granted] = None
        self._enrol(tenant)
        self._serve()
        if granted.done():
            return
        try:
            await granted
        except BaseException:
            if granted.cancelled():
                self._leave_line(tenant, granted)
            else:  # the room came and the cancellation after it
                self._leave(tenant)
            raise

    def _leave(self, tenant: str) -> None:
        self._free += 1
        _take_one(self.running, tenant)
        self.waiting[tenant] += 1  # as long as it has its place
        self._enrol(tenant)
        self._serve()

    def _enrol(self, tenant: str) -> None:
        if tenant in self._lines:
            self._turns.setdefault(tenant, None)

    def _serve(self) -> None:
        while self._free and self._turns:
            tenant, _ = self._turns.popitem(last=False)
            if self.running[tenant] >= self._tenants.quota(tenant).running:
                continue  # the next of its own runs that ends enrols it again
            granted = self._first_in_line(tenant)
            if granted is not None:
                self._free -= 1
                self.running[tenant] += 1
                _take_one(self.waiting, tenant)
                granted.set_result(None)
                self._enrol(tenant)

    def _first_in_line(self, tenant: str) -> asyncio.Future[None] | None:
        """The first who still waits: who is cancelled stands in line until its task has heard of it."""
        line = self._lines[tenant]
        first = None
        while line and (first is None or first.cancelled()):
            first, _ = line.popitem(last=False)
        if not line:
            del self._lines[tenant]
        return None if first is None or first.cancelled() else first

    def _leave_line(self, tenant: str, granted: asyncio.Future[None]) -> None:
        line = self._lines.get(tenant)
        if line is not None and granted in line:
            del line[granted]
            if not line:
                del self._lines[tenant]
                self._turns.pop(tenant, None)


def _take_one(counter: Counter[str], tenant: str) -> None:
    """Tenants of whom nothing is left are forgotten."""
    counter[tenant] -= 1
    if not counter[tenant]:
        del counter[tenant]

"""The zygotes of one runtime: which one makes the next session, and when another takes its place."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress

from cellar_executor.kernel import KernelUnavailable
from cellar_executor.kernels.zygote import Zygote

WAIT_S = 30.0
"""How long a session waits for a zygote that is being started."""
RETRY_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Between attempts to start one; the last one again and again."""
BACKGROUND_LOAD = 2
"""A zygote with as much to do makes nothing in advance."""

log = logging.getLogger(__name__)


class Zygotes:
    """`make` starts a zygote and returns it warm; `on_retired` is called with each that makes no more sessions."""

    def __init__(
        self,
        make: Callable[[], Awaitable[Zygote]],
        *,
        count: int,
        recycle_after_s: float,
        on_retired: Callable[[Zygote], None],
    ) -> None:
        self._make = make
        self._count = count
        self._recycle_after_s = recycle_after_s
        self._on_retired = on_retired
        self._serving: list[Zygote] = []
        self._retired: list[Zygote] = []
        self._made_by_retired = 0
        self._keepers: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._problem: str | None = None
        """Why the last attempt to start one failed."""

    def __len__(self) -> int:
        """Those that make sessions."""
        return sum(zygote.open for zygote in self._serving)

    @property
    def made(self) -> int:
        """Sessions, so far."""
        return self._made_by_retired + sum(zygote.made for zygote in self._serving)

    async def open(self) -> None:
        """Until the first one is warm; the others follow. Raises `KernelUnavailable`, `OSError` if it is not."""
        self._serving = [await self._make()]
        self._keepers = [asyncio.create_task(self._keep(self._serving[0]))]
        self._keepers += [asyncio.create_task(self._add()) for _ in range(1, self._count)]

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Zygote]:
        """The zygote with the least to do, for one clone. Raises `KernelUnavailable` when there is none."""
        try:
            async with asyncio.timeout(WAIT_S) as waiting, self._turn(math.inf) as zygote:
                waiting.reschedule(None)
                yield zygote
        except TimeoutError as exc:
            raise KernelUnavailable(f"there was no zygote for {WAIT_S:g} s") from exc

    @asynccontextmanager
    async def background_turn(self) -> AsyncIterator[Zygote]:
        """The same, once one has nothing better to do."""
        async with self._turn(BACKGROUND_LOAD) as zygote:
            yield zygote

    async def close(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._problem = "the supervisor is closing"
        self._changed.set()
        await asyncio.gather(*(zygote.close() for zygote in (*self._serving, *self._retired)))

    @asynccontextmanager
    async def _turn(self, load_below: float) -> AsyncIterator[Zygote]:
        while True:
            zygote = await self._least_busy(load_below)
            try:
                async with zygote.turn() as granted:
                    if granted:
                        yield zygote
                        return
            finally:
                self._changed.set()

    async def _least_busy(self, load_below: float) -> Zygote:
        while True:
            able = [zygote for zygote in self._serving if zygote.open]
            if not able and self._problem is not None:
                raise KernelUnavailable(self._problem)
            free = [zygote for zygote in able if zygote.load < load_below]
            if free:
                return min(free, key=lambda zygote: (zygote.load, len(zygote.kernels)))
            self._changed.clear()
            await self._changed.wait()

    # --- keeping up their number ---

    async def _add(self) -> None:
        zygote = await self._start_another()
        self._serving.append(zygote)
        self._changed.set()
        await self._keep(zygote)

    async def _keep(self, zygote: Zygote) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(zygote.worn.wait(), self._recycle_after_s)
            if not zygote.alive:
                log.error("a zygote died, and its sessions with it")
            successor = await self._start_another()
            self._serving[self._serving.index(zygote)] = successor
            self._changed.set()
            self._retire(zygote)
            zygote = successor

    def _retire(self, zygote: Zygote) -> None:
        zygote.retire()
        self._made_by_retired += zygote.made
        self._retired = [zygote, *(other for other in self._retired if not other.closed)]
        self._on_retired(zygote)

    async def _start_another(self) -> Zygote:
        for pause_s in pauses():
            try:
                successor = await self._make()
            except Exception as exc:
                log.error("%s; next attempt in %g s", exc, pause_s)
                self._problem = f"there is no zygote: {exc}"
                self._changed.set()
                await asyncio.sleep(pause_s)
            else:
                self._problem = None
                return successor
        raise AssertionError("the attempts do not end")


def pauses() -> Iterable[float]:
    yield from RETRY_PAUSES_S
    while True:
        yield RETRY_PAUSES_S[-1]

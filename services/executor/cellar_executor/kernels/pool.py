"""Sessions that are ready before anybody asks for them."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection

from cellar_executor.kernels.jailed_kernel import JailedKernel

RETRY_PAUSE_S = 1.0
REFILL_AFTER_S = 0.01
"""So that the first cell of the session that was just taken has the processor."""

log = logging.getLogger(__name__)


class Pool:
    """Keeps `size` of what `make` makes. `workers`: how many are made at a time."""

    def __init__(self, make: Callable[[], Awaitable[JailedKernel]], *, size: int, workers: int) -> None:
        self._make = make
        self._size = size
        self._workers = workers
        self._ready: deque[JailedKernel] = deque()
        self._in_making = 0
        self._wanted = asyncio.Event()
        self._refilling: list[asyncio.Task[None]] = []
        self._closing: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Filling goes on in the background."""
        self._refilling = [asyncio.create_task(self._refill()) for _ in range(min(self._workers, self._size))]

    def __len__(self) -> int:
        return len(self._ready)

    def take(self) -> JailedKernel | None:
        """The one that has waited longest, if there is one."""
        while self._ready:
            kernel = self._ready.popleft()
            self._wanted.set()
            if kernel.alive:
                return kernel
        return None

    def discard(self, kernels: Collection[JailedKernel]) -> None:
        """Those of them that are here are closed, and replaced; so are those that died."""
        for kernel in [kernel for kernel in self._ready if kernel in kernels or not kernel.alive]:
            self._ready.remove(kernel)
            closing = asyncio.create_task(kernel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._wanted.set()

    async def close(self) -> None:
        for task in self._refilling:
            task.cancel()
        await asyncio.gather(*self._refilling, return_exceptions=True)
        await asyncio.gather(*self._closing, *(kernel.close() for kernel in self._ready))
        self._ready.clear()

    async def _refill(self) -> None:
        while True:
            if len(self._ready) + self._in_making >= self._size:
                self._wanted.clear()
                await self._wanted.wait()
                await asyncio.sleep(REFILL_AFTER_S)
                continue
            self._in_making += 1
            try:
                self._ready.append(await self._make())
            except Exception as exc:
                log.warning("no session could be made in advance: %r", exc)
                await asyncio.sleep(RETRY_PAUSE_S)
            finally:
                self._in_making -= 1

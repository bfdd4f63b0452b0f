"""Whether the client of a request is still there, for work that is of no use to anybody else."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

LISTEN_AFTER_S = 1.0
"""Most requests are answered by then, and cost nothing for being attended."""

T = TypeVar("T")


class Presence:
    """Of one client. Once it has left it does not come back."""

    def __init__(self) -> None:
        self.gone = False
        self._act: Callable[[], object] | None = None

    def leave(self) -> None:
        if not self.gone:
            self.gone = True
            if self._act is not None:
                self._act()

    @contextmanager
    def or_else(self, act: Callable[[], object]) -> Iterator[None]:
        """Do `act` once the client leaves, or has left; it must not raise."""
        self._act = act
        if self.gone:
            act()
        try:
            yield
        finally:
            self._act = None


async def attended(work: Awaitable[T], receive: Callable[[], Awaitable[Any]], presence: Presence) -> T:
    """What `work` gives. `presence` hears if the client disconnects meanwhile; `receive` is ASGI's, after the body."""
    listening: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    timer = loop.call_later(LISTEN_AFTER_S, lambda: listening.append(loop.create_task(_listen(receive, presence))))
    try:
        return await work
    finally:
        timer.cancel()
        for task in listening:
            task.cancel()


async def _listen(receive: Callable[[], Awaitable[Any]], presence: Presence) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    presence.leave()

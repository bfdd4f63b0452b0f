"""Work that must reach Redis, however long that takes, while its client is answered in time."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from cellar_executor.background import Background
from cellar_executor.errors import StoreUnavailable

PATIENCE_S = 5.0
RETRY_S = 0.2

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)


async def answered(background: Background, work: Callable[[asyncio.Future[T]], Coroutine[Any, Any, T]]) -> T:
    """What `work` gives, or what it tells its client before its end. It goes on whatever becomes of the caller."""
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    background.start(settle(answer, work(answer)))
    return await asyncio.shield(answer)


async def recorded(write: Callable[[], Awaitable[R]], answer: asyncio.Future[Any]) -> R:
    """Repeat `write` until Redis has taken it. After a while the client is told to come back later."""
    patience_ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await write()
        except StoreUnavailable as refusal:
            if time.monotonic() > patience_ends and not answer.done():
                answer.set_exception(refusal)
            await asyncio.sleep(RETRY_S)


async def retried(write: Callable[[], Awaitable[R]]) -> R:
    """The same for what no client waits for."""
    while True:
        try:
            return await write()
        except StoreUnavailable:
            await asyncio.sleep(RETRY_S)


async def settle(answer: asyncio.Future[T], work: Coroutine[Any, Any, T]) -> None:
    """Give what `work` gives, or raises, to whoever waits for the answer."""
    try:
        result = await work
    except Exception as error:
        if answer.done():
            log.exception("work failed after its client was answered")
        else:
            answer.set_exception(error)
    else:
        if not answer.done():
            answer.set_result(result)

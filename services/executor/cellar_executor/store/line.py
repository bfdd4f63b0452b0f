"""One connection to Redis for all scripts: requests go out as they come, and are answered in that order.

Why not redis-py, as for everything else here: for each command it takes a connection from a pool and sets timers, which
costs more than twice the CPU of the rest, and every run of a cell waits for two scripts (see benchmarks/RESULTS.md).
The protocol itself is hiredis's.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis
from redis.asyncio.connection import parse_url
from redis.exceptions import ConnectionError, NoScriptError, ResponseError


class Script:
    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode()).hexdigest()


class Line:
    """Connects at the first request, and again at the next one after the connection was lost."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._wire: _Wire | None = None
        self._connecting = asyncio.Lock()

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[str | float | bytes]) -> Any:
        """Raises `redis.exceptions.RedisError`, `OSError`, `TimeoutError`: then whether it was done is not known."""
        async with asyncio.timeout(self._timeout_s):
            wire = self._wire
            if wire is None or wire.lost:
                wire = await self._connect()
            try:
                return await wire.ask("EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return await wire.ask("EVAL", script.source, len(keys), *keys, *args)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()

    async def _connect(self) -> "_Wire":
        async with self._connecting:
            if self._wire is None or self._wire.lost:
                self._wire = await _connected(self._url)
            return self._wire


class _Wire(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = False
        self._transport: asyncio.Transport
        self._replies = hiredis.Reader(encoding="utf-8", replyError=_error)
        self._asked: deque[asyncio.Future[Any]] = deque()

    def ask(self, *parts: Any) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.lost:
            answer.set_exception(ConnectionError("Redis closed the connection"))
            return answer
        self._asked.append(answer)
        self._transport.write(hiredis.pack_command(parts))
        return answer

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none of its subclasses

    def data_received(self, data: bytes) -> None:
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not False:
            answer = self._asked.popleft()
            if answer.done():  # nobody waits any more
                continue
            if isinstance(reply, Exception):
                answer.set_exception(reply)
            else:
                answer.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(ConnectionError("Redis closed the connection"))
        self._asked.clear()


async def _connected(url: str) -> _Wire:
    loop, options = asyncio.get_running_loop(), parse_url(url)
    if "path" in options:
        _, wire = await loop.create_unix_connection(_Wire, options["path"])
    else:
        host, port = options.get("host", "localhost"), options.get("port", 6379)
        _, wire = await loop.create_connection(_Wire, host, port, ssl=url.startswith("rediss://") or None)
    try:
        if password := options.get("password"):
            await wire.ask("AUTH", *([options["username"]] if "username" in options else []), password)
        if db := options.get("db"):
            await wire.ask("SELECT", db)
    except BaseException:
        wire.close()
        raise
    return wire


def _error(message: str) -> ResponseError:
    return NoScriptError(message) if message.startswith("NOSCRIPT") else ResponseError(message)

"""A TCP proxy that can fail as networks do. It listens at one address for ever; what is behind it may change.

with Proxy() as proxy:
    proxy.target = ("127.0.0.1", 6379)
    proxy.cut()             # refuses connections and resets those there are
    proxy.black_hole()      # takes everything and passes nothing on
    proxy.reset_after(100)  # each direction of each connection is reset once so many more bytes have passed
    proxy.delay(0.05)       # seconds, of each piece of data
    proxy.heal()
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER so that a close is a RST."""
PIECE = 1 << 16


class Proxy:
    """Its methods may be called from any thread; it has a loop and a thread of its own."""

    def __init__(self) -> None:
        self.target: tuple[str, int] | None = None
        self._refusing = False
        self._passing = asyncio.Event()
        self._budget: int | None = None
        self._delay_s = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._passing.set()
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        self._do(self._cut)

    def black_hole(self) -> None:
        self._do(self._passing.clear)

    def reset_after(self, count: int) -> None:
        self._budget = count

    def delay(self, seconds: float) -> None:
        self._delay_s = seconds

    def heal(self) -> None:
        """What a black hole has swallowed comes out late, as after a break of the network."""
        self._refusing, self._budget, self._delay_s = False, None, 0.0
        self._do(self._passing.set)

    def _do(self, what: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(what)

    def _cut(self) -> None:
        self._refusing = True
        for writer in list(self._writers):
            reset(writer)

    async def _serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, sock=self._listener)

    async def _close(self) -> None:
        self._server.close()
        self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            if self._refusing or self.target is None:
                return
            await self._passing.wait()
            behind, to_behind = await asyncio.open_connection(*self.target)
            ends.append(to_behind)
            self._writers |= {*ends}
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, to_behind))
                both.create_task(self._pass(behind, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            return  # one end is gone: so is the other; or the proxy is closed
        finally:
            for end in ends:
                reset(end)
            self._writers -= {*ends}

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """Until the source ends; then both directions end, by the error that this raises."""
        passed = 0
        while data := await source.read(PIECE):
            await self._passing.wait()
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            if self._budget is not None and passed + len(data) > self._budget:
                raise ConnectionResetError
            passed += len(data)
            to.write(data)
            await to.drain()
        if to.can_write_eof():
            to.write_eof()


def reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()

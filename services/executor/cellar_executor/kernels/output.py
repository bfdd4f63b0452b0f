"""One stream of a cell's output: drained while the cell runs, kept up to a limit as head and tail, and told as it comes
to whoever wants to hear it.
"""

import asyncio
import codecs
import fcntl
import os
import struct
import termios
from collections.abc import Callable

CHUNK_BYTES = 64 << 10
FLOOD_BYTES = 1 << 20
"""Cut output beyond this is read slowly, so that a flood costs its session and not the server."""
FLOOD_PAUSE_S = 0.005


class OutputRing:
    """Keeps the first and the last half of `limit` bytes, and counts the rest."""

    def __init__(self, limit: int) -> None:
        self._head_limit = limit - limit // 2
        self._tail_limit = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        room = self._head_limit - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > self._tail_limit + CHUNK_BYTES:
            self._trim()

    @property
    def cut(self) -> int:
        """How many bytes are lost."""
        return max(0, self.total - self._head_limit - self._tail_limit)

    def text(self) -> str:
        self._trim()
        if not self.cut:
            return _decode(bytes(self._head + self._tail))
        return f"{_decode(_whole_end(self._head))}\n... [{self.cut} bytes cut] ...\n{_decode(_whole_start(self._tail))}"

    def _trim(self) -> None:
        del self._tail[: max(0, len(self._tail) - self._tail_limit)]


class LiveText:
    """Tells what is written as text: character by character what `OutputRing.text` will say, if nothing is cut.

    Of output that is cut it tells the first `limit` bytes, and nothing of the rest.
    """

    def __init__(self, limit: int, tell: Callable[[str], None]) -> None:
        self._room = limit
        self._tell = tell
        self._cut = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def feed(self, data: bytes) -> None:
        self._cut |= len(data) > self._room
        told, self._room = data[: self._room], max(0, self._room - len(data))
        self._say(self._decoder.decode(told))

    def end(self) -> None:
        """Bytes at the end that are no whole character are told as what they are, unless the cut went through it."""
        if not self._cut:
            self._say(self._decoder.decode(b"", final=True))

    def _say(self, text: str) -> None:
        if text:
            self._tell(text)


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _whole_end(data: bytearray) -> bytes:
    """Without the first bytes of a character that the cut went through."""
    for back in range(1, min(4, len(data)) + 1):
        lead = data[-back]
        if lead & 0xC0 != 0x80:
            width = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
            return bytes(data[:-back] if width > back else data)
    return bytes(data)


def _whole_start(data: bytearray) -> bytes:
    """Without the last bytes of a character that the cut went through."""
    skip = 0
    while skip < min(3, len(data)) and data[skip] & 0xC0 == 0x80:
        skip += 1
    return bytes(data[skip:])


class OutputStream:
    """The read end of a kernel's stdout or stderr.

    Between cells nothing is read: a background thread that goes on printing fills the pipe and waits. What it left
    there is thrown away when the next cell begins. Other processes keep nothing but the old pipe after `renew`.
    """

    def __init__(self, fd: int, limit: int) -> None:
        self.limit = limit
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._ring: OutputRing | None = None
        self._live: LiveText | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._closed = False
        os.set_blocking(fd, False)
        self._watch()

    def begin(self, tell: Callable[[str], None] | None = None) -> None:
        """A cell starts; `tell` hears its output as it comes, and must not raise."""
        self._read_present()
        self._ring = OutputRing(self.limit)
        self._live = None if tell is None else LiveText(self.limit, tell)
        if not self._watching:
            self._watch()

    def finish(self) -> OutputRing:
        """Everything that was written before this moment; the kernel flushed before it said that the cell ended."""
        ring = self._ring
        assert ring is not None, "finish() follows begin()"
        if not self._closed:
            self._take(ring, self._read_present())
        if self._live is not None:
            self._live.end()
        self._ring = self._live = None
        return ring

    def renew(self) -> int:
        """Between cells: a fresh pipe in the place of this one; its write end. Who writes to the old one gets EPIPE."""
        read_end, write_end = os.pipe()
        self._unwatch()
        os.close(self._fd)
        os.set_blocking(read_end, False)
        self._fd = read_end
        self._watch()
        return write_end

    def close(self) -> None:
        """The writers are dead; what they left in the pipe still belongs to the running cell."""
        if self._ring is not None:
            self._take(self._ring, self._read_present())
        self._unwatch()
        self._closed = True
        os.close(self._fd)

    def _on_readable(self) -> None:
        if self._ring is None:
            self._unwatch()
            return
        data = os.read(self._fd, CHUNK_BYTES)
        self._take(self._ring, data)
        if not data:
            self._unwatch()
        elif self._ring.cut > FLOOD_BYTES:
            self._unwatch()
            self._resume = self._loop.call_later(FLOOD_PAUSE_S, self._watch)

    def _take(self, ring: OutputRing, data: bytes) -> None:
        ring.feed(data)
        if self._live is not None:
            self._live.feed(data)

    def _read_present(self) -> bytes:
        """What is in the pipe now, and not what a writer that never stops adds meanwhile."""
        (present,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))
        return os.read(self._fd, present) if present else b""

    def _watch(self) -> None:
        self._cancel_resume()
        self._watching = True
        self._loop.add_reader(self._fd, self._on_readable)

    def _unwatch(self) -> None:
        self._cancel_resume()
        self._watching = False
        self._loop.remove_reader(self._fd)

    def _cancel_resume(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None

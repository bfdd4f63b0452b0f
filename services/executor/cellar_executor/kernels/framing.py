"""Frames of the channel between supervisor and kernel: a 4-byte big-endian length, then that many bytes of JSON.

What comes out of a kernel is hostile: the length is capped before anything is kept.
"""

import struct
from collections.abc import Iterator

_HEADER = struct.Struct("!I")


class FrameTooLong(Exception):
    pass


def frame(payload: bytes) -> bytes:
    return _HEADER.pack(len(payload)) + payload


class FrameDecoder:
    """Cuts a byte stream, as it arrives, into the payloads of its frames."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that `data` completes, one by one. Raises `FrameTooLong` for a frame of more than `max_bytes`.

        A caller that expects one payload stops at the second: there may be as many as `data` has room for headers.
        """
        self._buffer += data
        while (payload := self._next()) is not None:
            yield payload

    def _next(self) -> bytes | None:
        if len(self._buffer) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack_from(self._buffer)
        if size > self._max_bytes:
            raise FrameTooLong(f"a frame of {size} bytes; at most {self._max_bytes} are accepted")
        end = _HEADER.size + size
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        return payload

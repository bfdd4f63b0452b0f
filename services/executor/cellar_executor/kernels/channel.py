"""The supervisor's end of a kernel's control channel: one request, one reply, and no word in between."""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from cellar_executor.kernels.framing import FrameDecoder, FrameTooLong, frame

RECEIVE_BYTES = 256 << 10
CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""


class KernelChannel:
    """`on_broken` is called when the kernel breaks the protocol: a frame that nobody asked for or that is too long, or
    the end of the stream. The caller then kills it and calls `close`, which answers None to who still waits.
    """

    def __init__(self, control: socket.socket, max_bytes: int, on_broken: Callable[[], None]) -> None:
        self.peer_pid: int | None = None
        """Who wrote the first frame, by the word of the host's kernel."""
        self._socket = control
        self._decoder = FrameDecoder(max_bytes)
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[bytes | None] | None = None
        control.setblocking(False)
        self._loop.add_reader(control, self._on_readable)

    async def ask(self, request: bytes) -> bytes | None:
        """Send a request; its reply, or None when the kernel died instead."""
        reply = self._expect()
        with suppress(OSError):  # it is dying: its end is noticed elsewhere, and then there is an answer
            await self._send(frame(request))
        return await reply

    async def receive(self) -> bytes | None:
        return await self._expect()

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._answer(None)

    def _expect(self) -> asyncio.Future[bytes | None]:
        self._reply = self._loop.create_future()
        if self._socket.fileno() < 0:
            self._reply.set_result(None)
        return self._reply

    async def _send(self, data: bytes) -> None:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            await self._loop.sock_sendall(self._socket, memoryview(data)[sent:])

    def _on_readable(self) -> None:
        try:
            data = self._read()
        except ConnectionError:
            data = b""
        if not data:
            self._break()
            return
        try:
            payloads = self._decoder.feed(data)
        except FrameTooLong:
            self._break()
            return
        for payload in payloads:
            if not self._answer(payload):
                self._break()

    def _read(self) -> bytes:
        if self.peer_pid is not None:
            return self._socket.recv(RECEIVE_BYTES)
        data, ancillary, _, _ = self._socket.recvmsg(RECEIVE_BYTES, socket.CMSG_SPACE(CREDENTIALS.size))
        for _, kind, content in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                self.peer_pid, _, _ = CREDENTIALS.unpack(content)
        return data

    def _answer(self, payload: bytes | None) -> bool:
        """Whether somebody was waiting for it."""
        reply, self._reply = self._reply, None
        if reply is None or reply.done():
            return False
        reply.set_result(payload)
        return True

    def _break(self) -> None:
        self._loop.remove_reader(self._socket)
        self._on_broken()

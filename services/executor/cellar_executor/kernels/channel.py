"""The supervisor's end of a kernel's control channel: one request, one reply, and no word in between."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from cellar_executor.kernels.framing import FrameDecoder, FrameTooLong, frame

RECEIVE_BYTES = 256 << 10
CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""
FD = struct.Struct("i")
SO_PASSPIDFD, SCM_PIDFD = 76, 4
"""Of Linux 6.5, which Python does not name yet."""
PEER_SPACE = socket.CMSG_SPACE(CREDENTIALS.size) + socket.CMSG_SPACE(FD.size)


class KernelChannel:
    """`on_broken` is called when the kernel breaks the protocol: a frame that nobody asked for or that is too long, or
    the end of the stream. The caller then kills it and calls `close`, which answers None to who still waits.
    """

    def __init__(self, control: socket.socket, max_bytes: int, on_broken: Callable[[], None]) -> None:
        self.peer_pid: int | None = None
        """Who wrote the first frame, by the word of the host's kernel."""
        self._peer_pidfd: int | None = None
        self._asks_for_peer = True
        self._socket = control
        self._decoder = FrameDecoder(max_bytes)
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[bytes | None] | None = None
        control.setblocking(False)
        with suppress(OSError):
            control.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
        self._first = self._expect()
        self._loop.add_reader(control, self._on_readable)

    async def ask(self, request: bytes, fds: Sequence[int] = ()) -> bytes | None:
        """Send a request, and `fds` with it; its reply, or None when the kernel died instead."""
        reply = self._expect()
        if reply.done():
            return None
        try:
            await self._send(frame(request), fds, reply)
            return await reply
        except asyncio.CancelledError:
            self._break()  # nobody knows how far it came, and its late reply would answer the next request
            raise

    async def first(self) -> bytes | None:
        """What the kernel says unasked, once; None when it died instead."""
        return await self._first

    async def identify(self, ping: bytes) -> int:
        """A pidfd of who wrote the first frame, which has come. Raises `ProcessLookupError` when it is gone."""
        assert self.peer_pid is not None
        pid, pidfd = self.peer_pid, self._peer_pidfd
        self._peer_pidfd = None
        if pidfd is None:
            # Linux before 6.5. The number may be another process's by now: not if its owner still says something.
            pidfd = os.pidfd_open(pid)
            if await self.ask(ping) is None or self.peer_pid != pid:
                os.close(pidfd)
                raise ProcessLookupError
        self.stop_identifying()
        return pidfd

    def stop_identifying(self) -> None:
        self._asks_for_peer = False
        self._drop_pidfd()

    def tell(self, request: bytes) -> None:
        """Send a short request that has no reply, and listen no more. The socket stays open."""
        with suppress(OSError):
            self._socket.send(frame(request))
        self._loop.remove_reader(self._socket)
        self._answer(None)

    def close(self) -> None:
        """Idempotent."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._drop_pidfd()
        self._answer(None)

    def _expect(self) -> asyncio.Future[bytes | None]:
        self._reply = self._loop.create_future()
        if self._socket.fileno() < 0:
            self._reply.set_result(None)
        return self._reply

    async def _send(self, data: bytes, fds: Sequence[int], reply: asyncio.Future[bytes | None]) -> None:
        """The first bytes find room: every earlier request was read before it was answered."""
        try:
            sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
            if sent < len(data):
                await self._send_on(memoryview(data)[sent:], reply)
        except OSError:
            self._break()  # it is dying, or it answered what it did not read

    async def _send_on(self, data: memoryview, reply: asyncio.Future[bytes | None]) -> None:
        """Until all is sent, or the channel is closed: another process of the jail may hold its end, and never read."""
        sending = self._loop.create_task(self._loop.sock_sendall(self._socket, data))
        try:
            await asyncio.wait((sending, reply), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()

    def _on_readable(self) -> None:
        try:
            data = self._read()
        except ConnectionError:
            data = b""
        if not data:
            self._break()
            return
        try:
            asked_for = all(map(self._answer, self._decoder.feed(data)))  # to the first that nobody asked for
        except FrameTooLong:
            asked_for = False
        if not asked_for:
            self._break()

    def _read(self) -> bytes:
        if not self._asks_for_peer:
            return self._socket.recv(RECEIVE_BYTES)
        data, ancillary, _, _ = self._socket.recvmsg(RECEIVE_BYTES, PEER_SPACE, socket.MSG_CMSG_CLOEXEC)
        for _, kind, content in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                self.peer_pid, _, _ = CREDENTIALS.unpack(content)
            elif kind == SCM_PIDFD:
                self._take_pidfd(*FD.unpack(content))
            elif kind == socket.SCM_RIGHTS:
                close_all(fd for (fd,) in FD.iter_unpack(content))  # a kernel has none to give
        return data

    def _take_pidfd(self, pidfd: int) -> None:
        self._drop_pidfd()
        self._peer_pidfd = pidfd

    def _drop_pidfd(self) -> None:
        if self._peer_pidfd is not None:
            os.close(self._peer_pidfd)
            self._peer_pidfd = None

    def _answer(self, payload: bytes | None) -> bool:
        """Whether somebody was waiting for it."""
        reply, self._reply = self._reply, None
        if reply is None or reply.done():
            return False
        reply.set_result(payload)
        return True

    def _break(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._on_broken()


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)

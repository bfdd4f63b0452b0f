"""A TCP server that answers with the very bytes of a script, and remembers what it was sent."""

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

Script = Callable[["Connection"], None]


@dataclass
class Connection:
    """One connection of a client; `number` counts from 0."""

    number: int
    socket: socket.socket
    server: "RawServer"

    def receive(self) -> bytes:
        """The next request; empty when the client closed."""
        request = b""
        while b"\r\n\r\n" not in request or len(request) < _length(request):
            received = self.socket.recv(65536)
            if not received:
                return b""
            request += received
        self.server.requests.append(request)
        return request

    def send(self, *lines: str, body: bytes = b"") -> None:
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def answer(self, body: bytes = b"", *, status: str = "200 OK", headers: tuple[str, ...] = ()) -> None:
        self.send(f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, body=body)


@dataclass
class RawServer:
    script: Script
    host: str = "127.0.0.1"
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Self:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, 0), family=family)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                accepted, _ = self._listener.accept()
                self._open.append(accepted)
                thread = threading.Thread(target=self._talk, args=[Connection(self.connections, accepted, self)])
                self.connections += 1
                self._threads.append(thread)
                thread.start()

    def _talk(self, connection: Connection) -> None:
        with connection.socket, contextlib.suppress(OSError):  # the client or the end of the test cut it
            self.script(connection)


def answers(connection: Connection) -> None:
    """Every request with its own body."""
    while request := connection.receive():
        connection.answer(request.partition(b"\r\n\r\n")[2])


def _length(request: bytes) -> int:
    head = request.partition(b"\r\n\r\n")[0]
    lengths = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(head) + 4 + sum(lengths)

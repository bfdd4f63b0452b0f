"""A TCP proxy that cuts connections on demand, so that a reply is lost while the server knows nothing of it."""

import asyncio
from typing import Self
from urllib.parse import urlsplit


class CuttingProxy:
    def __init__(self, server_url: str) -> None:
        server = urlsplit(server_url)
        self._server = (server.hostname, server.port)
        self._to_clients: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._reply_to_lose = b""

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._listener.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._listener.close()
        self.cut()
        await asyncio.gather(*self._connections)

    def cut(self) -> None:
        """Cut every connection now."""
        for writer in self._to_clients:
            writer.transport.abort()

    def lose_reply(self, containing: bytes) -> None:
        """Cut the connection at the next reply that holds these bytes, without passing it on."""
        self._reply_to_lose = containing

    async def _connected(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._to_clients.add(to_client)
        from_server, to_server = await asyncio.open_connection(*self._server)
        async with asyncio.TaskGroup() as directions:
            directions.create_task(self._requests(from_client, to_server))
            directions.create_task(self._replies(from_server, to_client))
        self._to_clients.remove(to_client)

    async def _requests(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await _read(source):
            sink.write(data)
        sink.close()

    async def _replies(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await _read(source):
            if self._reply_to_lose and self._reply_to_lose in data:
                self._reply_to_lose = b""
                sink.transport.abort()
                return
            sink.write(data)
        sink.close()


async def _read(source: asyncio.StreamReader) -> bytes:
    """The next bytes; none at the end, however it came."""
    try:
        return await source.read(65536)
    except ConnectionError:
        return b""

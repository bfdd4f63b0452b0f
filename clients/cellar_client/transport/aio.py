"""HTTP for asyncio: the only file of the client that knows aiohttp."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError
from yarl import URL

from cellar_client.errors import ConnectionFailed, InvalidReply, RequestTimeout, TransportError
from cellar_client.transport import (
    CONNECT_TIMEOUT_S,
    MAX_CONNECTIONS,
    AsyncHttpStream,
    HttpReply,
    HttpRequest,
    authorization,
    base_of,
)

IDLE_CONNECTION_S = 4.0
"""Less than the five seconds after which the server closes an idle connection, so that no request meets the closing."""
LARGE_BODY = 2**20


class AiohttpTransport:
    """Keeps connections alive. Proxies, cookies and `.netrc` of the environment are not looked at."""

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float) -> None:
        """Raises `ValueError` for an unusable URL."""
        self._base = base_of(base_url)
        self._headers = authorization(api_key)
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._opened: aiohttp.ClientSession | None = None

    async def send(self, request: HttpRequest) -> HttpReply:
        async with self._slots:
            try:
                return await self._exchange(request)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _named(error, f"{request.method} {self._base}{request.path}") from error

    @asynccontextmanager
    async def open(self, request: HttpRequest) -> AsyncIterator[AsyncHttpStream]:
        async with self._slots:
            try:
                async with self._reply(request) as response:
                    chunks = response.content.iter_any()
                    yield AsyncHttpStream(response.status, chunks, response.headers.get("Retry-After"))
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _named(error, f"{request.method} {self._base}{request.path}") from error

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    async def _exchange(self, request: HttpRequest) -> HttpReply:
        async with self._reply(request) as response:
            return HttpReply(response.status, await response.read(), response.headers.get("Retry-After"))

    @asynccontextmanager
    async def _reply(self, request: HttpRequest) -> AsyncIterator[aiohttp.ClientResponse]:
        """The head of the reply."""
        silence_s = self._timeout_s if request.silence_s is None else request.silence_s
        connect_s = min(self._timeout_s, CONNECT_TIMEOUT_S)
        # aiohttp bounds the waits to connect and to read, and none to write: so there is a bound on all that comes
        # before the head of the reply.
        async with asyncio.timeout(connect_s + self._timeout_s + silence_s) as until_head:
            async with self._session.request(
                request.method,
                URL(f"{self._base}{request.target}", encoded=True),
                data=_body(request.content),
                headers=request.headers,
                timeout=aiohttp.ClientTimeout(sock_connect=connect_s, sock_read=silence_s),
                allow_redirects=False,
            ) as response:
                until_head.reschedule(None)
                yield response

    @property
    def _session(self) -> aiohttp.ClientSession:
        """Opened at the first request: aiohttp wants to be in the event loop that it will serve."""
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
            )
            # Else aiohttp sends a GET, PUT or DELETE a second time when its connection breaks: what is tried again, and
            # how often, is for `Retries` to say. There is no public switch; aiohttp's own test client sets this one.
            self._opened._retry_connection = False
        return self._opened


def _body(content: bytes) -> bytes | BytesIO | None:
    """Long ones in a form that aiohttp writes piece by piece, so that other requests get their turn between."""
    return BytesIO(content) if len(content) > LARGE_BODY else content or None


def _named(error: Exception, request: str) -> TransportError:
    """Our name for what aiohttp says."""
    message = f"{request}: {str(error) or type(error).__name__}"
    if isinstance(error.__cause__, ContentEncodingError):
        return InvalidReply(message)
    if isinstance(error, aiohttp.SocketTimeoutError) or not isinstance(error, aiohttp.ClientError):
        return RequestTimeout(message)
    return ConnectionFailed(message)

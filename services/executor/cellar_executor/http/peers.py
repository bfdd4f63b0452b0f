"""The other servers on the same Redis, and how a request goes to the one that holds its session.

What may have reached another server is never sent again from here: only the client can know whether that is safe. When
no answer comes it is told so (`owner_unavailable`), and asks again with its idempotency key.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO

import aiohttp
from starlette.datastructures import Headers
from yarl import URL

from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.ids import Ref
from cellar_executor.service import Service

FORWARDED = "Cellar-Forwarded"
"""On a request that another server has sent on: that server's instance. It goes no further, so that none circles.

A client that sends it itself has its requests refused where they do not belong, and nothing else.
"""
CONNECT_S = 2.0
KEEP_ALIVE_S = 2.0
"""Shorter than a server keeps an idle connection (uvicorn: 5 s), so that none is closed just as a request goes out."""
LOOK_EVERY_S = 1.0
"""How often a server that waits for another one's answer looks whether the session is still there."""
LARGE_BODY = 2**20

RawHeaders = Iterable[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
WRITTEN_ANEW = frozenset([b"host", b"content-length", b"expect", FORWARDED.lower().encode()])
"""Of a request that goes on. Its body is here already, so nothing is expected any more."""
ADDED_BY_AIOHTTP = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Errand:
    """A request that is to be sent on."""

    method: str
    target: str
    """Path and query, percent-encoded as they came."""
    headers: RawHeaders
    body: bytes


@asynccontextmanager
async def open_peers(service: Service) -> AsyncIterator["Peers"]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),  # as many as there are callers
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        middlewares=[_once],
    ) as http:
        yield Peers(service, http)


class Peers:
    def __init__(self, service: Service, http: aiohttp.ClientSession) -> None:
        self._service = service
        self._http = http

    async def owner(self, ref: Ref, headers: RawHeaders) -> str | None:
        """URL of the live server that holds the session, if that is another one; `headers` are those of the request.

        Raises `owner_unavailable` for a request that has been sent on already; `store_unavailable`.
        """
        url = await self._service.holding.elsewhere(ref)
        if url is not None and FORWARDED in Headers(raw=list(headers)):
            raise Refusal("owner_unavailable", "the session has moved on meanwhile")
        return url

    @asynccontextmanager
    async def ask(self, ref: Ref, url: str, errand: Errand) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer of the session's owner, whose body is yet to be read.

        Raises `owner_unavailable` when the owner does not answer to the end, or holds the session no longer.
        """
        async with self._while_held(ref, url):
            try:
                response = await self._http.request(
                    errand.method,
                    URL(url.rstrip("/") + errand.target, encoded=True),
                    headers=[*_onward(errand.headers), (FORWARDED, self._service.status.instance)],
                    data=BytesIO(errand.body) if len(errand.body) > LARGE_BODY else errand.body or None,
                    skip_auto_headers=ADDED_BY_AIOHTTP,
                    allow_redirects=False,
                )
                try:
                    yield response
                finally:
                    response.close()  # unless all of it was read, the owner sees its client go away
            except aiohttp.ClientError as error:
                raise _lost(error) from error

    @asynccontextmanager
    async def _while_held(self, ref: Ref, url: str) -> AsyncIterator[None]:
        """Cancels what is inside once the session is not at `url` any more: no answer will come from there."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                watch = asyncio.create_task(self._watch(ref, url, limit))
                try:
                    yield
                finally:
                    watch.cancel()
        except TimeoutError:
            if not limit.expired():
                raise
            raise Refusal("owner_unavailable", "the session left its server before that answered") from None

    async def _watch(self, ref: Ref, url: str, limit: asyncio.Timeout) -> None:
        # Twice: an owner that has just deleted the session, or given it up in good order, is about to say so itself.
        missed = 0
        while missed < 2:
            await asyncio.sleep(LOOK_EVERY_S)
            missed = 0 if await self._may_be_at(ref, url) else missed + 1
        limit.reschedule(0)

    async def _may_be_at(self, ref: Ref, url: str) -> bool:
        try:
            return await self._service.holding.elsewhere(ref) == url
        except StoreUnavailable:
            return True  # and nobody can take it over either


def end_to_end(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Without those that are about one connection, in lower case."""
    lower = [(name.lower(), value) for name, value in headers]
    listed = [value.lower().split(b",") for name, value in lower if name == b"connection"]
    dropped = HOP_BY_HOP.union(name.strip() for names in listed for name in names)
    return [(name, value) for name, value in lower if name not in dropped]


def _onward(headers: RawHeaders) -> list[tuple[str, str]]:
    # aiohttp writes UTF-8; no header that has a meaning here is anything but ASCII.
    return [
        (name.decode("latin-1"), value.decode(errors="replace"))
        for name, value in end_to_end(headers)
        if name not in WRITTEN_ANEW
    ]


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """aiohttp sends a GET, PUT or DELETE again when a connection breaks that it had used before; not these errors."""
    try:
        return await send(request)
    except aiohttp.ClientError as error:
        raise _lost(error) from error


def _lost(error: aiohttp.ClientError) -> Refusal:
    log.warning("no answer from another server: %s", error)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Refusal("owner_unavailable", "the server that holds the session cannot be reached; nothing was done")
    return Refusal("owner_unavailable", "the server that holds the session broke off: it may have done it")

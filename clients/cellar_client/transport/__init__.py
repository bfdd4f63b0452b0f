"""One HTTP request out, one HTTP reply in. How they travel is in `transport.aio` and `transport.sync`.

Another transport is any object with `send`, `open` and `close`; it raises nothing but `TransportError`.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode, urlsplit

CONNECT_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 512
"""A run holds a connection until it ends, so this bounds the runs in flight; more of them wait for a connection."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    method: str
    path: str
    """As it goes over the wire: percent-encoded where it has to be."""
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    silence_s: float | None = None
    """Longest wait for the next bytes of the reply; None is the transport's own `timeout_s`."""

    @property
    def target(self) -> str:
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path


@dataclass(frozen=True, slots=True)
class HttpReply:
    status: int
    content: bytes
    retry_after: str | None = None
    """The `Retry-After` header."""


@dataclass(frozen=True, slots=True)
class AsyncHttpStream:
    """A reply whose body comes piece by piece; reading it raises `TransportError` when it breaks."""

    status: int
    chunks: AsyncIterator[bytes]
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class HttpStream:
    """A reply whose body comes piece by piece; reading it raises `TransportError` when it breaks."""

    status: int
    chunks: Iterator[bytes]
    retry_after: str | None = None


class AsyncTransport(Protocol):
    async def send(self, request: HttpRequest) -> HttpReply:
        """Raises `TransportError` when no whole reply came."""
        ...

    def open(self, request: HttpRequest) -> AbstractAsyncContextManager[AsyncHttpStream]:
        """The reply as it comes; leaving it before its end cuts the connection. Raises as `send`."""
        ...

    async def close(self) -> None: ...


class Transport(Protocol):
    def send(self, request: HttpRequest) -> HttpReply:
        """Raises `TransportError` when no whole reply came."""
        ...

    def open(self, request: HttpRequest) -> AbstractContextManager[HttpStream]:
        """The reply as it comes; leaving it before its end cuts the connection. Raises as `send`."""
        ...

    def close(self) -> None: ...


def base_of(url: str) -> str:
    """What the path of each request is appended to. Raises `ValueError` for an unusable URL."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError(f"not a URL: {url!r}: {error}") from error
    if not usable:
        raise ValueError(f"not an http:// or https:// URL: {url!r}")
    if parts.query or parts.fragment or parts.username is not None or not url.isascii():
        raise ValueError(f"a server's URL is scheme, host, port and path, in ASCII: {url!r}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def authorization(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}

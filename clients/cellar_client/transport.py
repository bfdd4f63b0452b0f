"""One HTTP request out, one HTTP reply in: the only file that knows httpx.

Another transport is any object with `send` and `close`; it raises nothing but `TransportError`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from cellar_client.errors import ConnectionFailed, InvalidReply, RequestTimeout, TransportError

CONNECT_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 512
"""A run holds a connection until it ends, so this bounds the runs in flight; more of them wait for a connection."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    method: str
    path: str
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    silence_s: float | None = None
    """Longest wait for the next bytes of the reply; None is the transport's own `timeout_s`."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    status: int
    content: bytes
    retry_after: str | None = None
    """The `Retry-After` header."""


class AsyncTransport(Protocol):
    async def send(self, request: HttpRequest) -> HttpReply:
        """Raises `TransportError` when no whole reply came."""
        ...

    async def close(self) -> None: ...


class Transport(Protocol):
    def send(self, request: HttpRequest) -> HttpReply:
        """Raises `TransportError` when no whole reply came."""
        ...

    def close(self) -> None: ...


class AsyncHttpxTransport:
    def __init__(
        self, base_url: str, *, api_key: str | None, timeout_s: float, wire: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`wire` replaces the network, as `httpx.MockTransport` does. Raises `ValueError` for an unusable URL."""
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(transport=wire, **_client_options(base_url, api_key))

    async def send(self, request: HttpRequest) -> HttpReply:
        with _errors_of_ours():
            return _reply(await self._client.request(**_request_options(request, self._timeout_s)))

    async def close(self) -> None:
        await self._client.aclose()


class HttpxTransport:
    def __init__(
        self, base_url: str, *, api_key: str | None, timeout_s: float, wire: httpx.BaseTransport | None = None
    ) -> None:
        """`wire` replaces the network, as `httpx.MockTransport` does. Raises `ValueError` for an unusable URL."""
        self._timeout_s = timeout_s
        self._client = httpx.Client(transport=wire, **_client_options(base_url, api_key))

    def send(self, request: HttpRequest) -> HttpReply:
        with _errors_of_ours():
            return _reply(self._client.request(**_request_options(request, self._timeout_s)))

    def close(self) -> None:
        self._client.close()


def transport_error(error: httpx.TransportError) -> TransportError:
    """Our name for what httpx says. Nothing was sent after a timeout of the connection or of the pool."""
    said = str(error) or type(error).__name__
    message = f"{error.request.method} {error.request.url}: {said}"
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return RequestTimeout(message)
    return ConnectionFailed(message)


def _client_options(base_url: str, api_key: str | None) -> dict[str, Any]:
    return {
        "base_url": _http_url(base_url),
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        "limits": httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
    }


def _http_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"not a URL: {url!r}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"not an http:// or https:// URL: {url!r}")
    return parsed


def _request_options(request: HttpRequest, timeout_s: float) -> dict[str, Any]:
    silence_s = timeout_s if request.silence_s is None else request.silence_s
    return {
        "method": request.method,
        "url": request.path,
        "params": dict(request.query) or None,
        "content": request.content or None,
        "headers": dict(request.headers),
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S), read=silence_s, pool=None),
    }


def _reply(response: httpx.Response) -> HttpReply:
    return HttpReply(response.status_code, response.content, response.headers.get("Retry-After"))


@contextmanager
def _errors_of_ours() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise transport_error(error) from error
    except httpx.DecodingError as error:
        raise InvalidReply(f"the reply cannot be decoded: {error}") from error

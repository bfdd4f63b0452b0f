"""HTTP for blocking code: the only file of the client that knows urllib3."""

from collections.abc import Iterator
from contextlib import contextmanager

import urllib3
from urllib3.exceptions import DecodeError, HTTPError, ReadTimeoutError

from cellar_client.errors import ConnectionFailed, InvalidReply, RequestTimeout, TransportError
from cellar_client.transport import (
    CONNECT_TIMEOUT_S,
    MAX_CONNECTIONS,
    HttpReply,
    HttpRequest,
    HttpStream,
    authorization,
    base_of,
)

CHUNK = 2**16


class Urllib3Transport:
    """Keeps connections alive, for any number of threads. Proxies and `.netrc` of the environment are not looked at."""

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float) -> None:
        """Raises `ValueError` for an unusable URL."""
        self._base = base_of(base_url)
        self._prefix = urllib3.util.parse_url(self._base).path or ""
        self._headers = authorization(api_key)
        self._timeout_s = timeout_s
        self._pool = urllib3.connection_from_url(self._base, maxsize=MAX_CONNECTIONS, block=True)

    def send(self, request: HttpRequest) -> HttpReply:
        with _naming(f"{request.method} {self._base}{request.path}"):
            response = self._ask(request, preload=True)
            return HttpReply(response.status, response.data, response.headers.get("Retry-After"))

    @contextmanager
    def open(self, request: HttpRequest) -> Iterator[HttpStream]:
        with _naming(f"{request.method} {self._base}{request.path}"):
            response = self._ask(request, preload=False)
            try:
                yield HttpStream(response.status, response.stream(CHUNK), response.headers.get("Retry-After"))
            finally:
                response.close()
                response.release_conn()

    def _ask(self, request: HttpRequest, *, preload: bool) -> urllib3.BaseHTTPResponse:
        silence_s = self._timeout_s if request.silence_s is None else request.silence_s
        return self._pool.urlopen(
            request.method,
            f"{self._prefix}{request.target}",
            request.content or None,
            {**self._headers, **request.headers},
            retries=False,
            timeout=urllib3.Timeout(connect=min(self._timeout_s, CONNECT_TIMEOUT_S), read=silence_s),
            preload_content=preload,
        )

    def close(self) -> None:
        self._pool.close()


@contextmanager
def _naming(request: str) -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError) as error:
        raise _named(error, request) from error


def _named(error: Exception, request: str) -> TransportError:
    """Our name for what urllib3 says."""
    message = f"{request}: {error}"
    if isinstance(error, DecodeError):
        return InvalidReply(message)
    if isinstance(error, ReadTimeoutError):
        return RequestTimeout(message)
    return ConnectionFailed(message)

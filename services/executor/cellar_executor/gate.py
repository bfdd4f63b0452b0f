"""In front of all routes: who may speak, and how much. Refuses before a body is buffered."""

import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellar_executor.errors import Refusal, respond
from cellar_executor.settings import is_loopback


class Gate:
    """ASGI middleware: puts the tenant into the request's state and hands on whole bodies of bounded size."""

    def __init__(self, app: ASGIApp, *, api_keys: Mapping[str, str], max_body_bytes: int) -> None:
        self._app = app
        self._tenants = {_digest(key): tenant for key, tenant in api_keys.items()}
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            if scope["path"].startswith("/v1/"):
                scope.setdefault("state", {})["tenant"] = self._tenant(headers)
            body = await self._body(headers, receive)
        except Refusal as refusal:
            # The rest of a refused body is not read, so the connection cannot be used again.
            return await respond(refusal, {"Connection": "close"})(scope, receive, send)
        await self._app(scope, _replay(body, receive), send)

    def _tenant(self, headers: Headers) -> str:
        if not self._tenants:
            return _local_tenant(headers)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key)
        # Every key is compared, each in constant time: the answer's time tells nothing about them.
        matches = [tenant for digest, tenant in self._tenants.items() if hmac.compare_digest(digest, given)]
        if scheme.lower() != "bearer" or not matches:
            raise Refusal("unauthorized")
        return matches[0]

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        if not length and "transfer-encoding" not in headers:
            return b""
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                raise self._too_large()
            chunks.append(chunk)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _too_large(self) -> Refusal:
        return Refusal("body_too_large", f"more than {self._max_body_bytes} bytes")


def _local_tenant(headers: Headers) -> str:
    """Without keys only this machine is served, by its own names: a web page that rebinds its name to it is not.

    Nor is any other page of a browser on this machine, whose requests carry the page's origin.
    """
    if not _names_this_machine(f"//{headers.get('host', '')}"):
        raise Refusal("unauthorized", "without API keys the server answers to loopback names only")
    origin = headers.get("origin")
    foreign = origin is not None and not _names_this_machine(origin)
    if foreign or headers.get("sec-fetch-site") == "cross-site":
        raise Refusal("unauthorized", "without API keys the server answers to no web page from elsewhere")
    return "default"


def _names_this_machine(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def receive_whole() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_whole

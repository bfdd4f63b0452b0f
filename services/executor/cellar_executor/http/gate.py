"""In front of all routes: who may speak, and how much. Refuses before a body is buffered."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellar_executor.errors import CannotServe, Refusal
from cellar_executor.http.problems import respond
from cellar_executor.settings import ENV_PREFIX, is_loopback
from cellar_executor.tenancy.tenants import Tenants


def refuse_open_house(host: str, tenants: Tenants) -> None:
    """Without keys nothing but loopback is served. Raises `CannotServe`."""
    if not tenants.keys_required and not is_loopback(host):
        raise CannotServe(
            f"without API keys only a loopback address is served, and {host} is none: "
            f"set {ENV_PREFIX}API_KEYS, make a key with `cellar-executor keys add`, or use --host 127.0.0.1"
        )


class ClientGone(Exception):
    """The client left in the middle of its request: what came of it is not done, and nobody hears an answer."""


class Gate:
    """ASGI middleware: puts the tenant into the request's state and hands on whole bodies of bounded size."""

    def __init__(self, app: ASGIApp, *, tenants: Tenants, max_body_bytes: int) -> None:
        self._app = app
        self._tenants = tenants
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            if scope["path"].startswith("/v1/"):
                scope.setdefault("state", {})["tenant"] = self._tenant(headers)
            body = await self._body(headers, receive)
        except ClientGone:
            return
        except Refusal as refusal:
            # The rest of a refused body is not read, so the connection cannot be used again.
            return await respond(refusal, {"Connection": "close"})(scope, receive, send)
        await self._app(scope, _replay(body, receive), send)

    def _tenant(self, headers: Headers) -> str:
        if not self._tenants.keys_required:
            return _local_tenant(headers)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        tenant = self._tenants.tenant_of(key)
        if scheme.lower() != "bearer" or tenant is None:
            raise Refusal("unauthorized")
        return tenant

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        if not length and "transfer-encoding" not in headers:
            return b""
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
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


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def receive_whole() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_whole

"""Requests on sessions that another server holds: what reaches that server, and what comes back."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from starlette.types import Message, Receive, Scope, Send

from cellar_executor.background import Background
from cellar_executor.errors import StoreUnavailable
from cellar_executor.http import peers
from cellar_executor.http.forward import Forward
from cellar_executor.http.peers import Peers, open_peers
from cellar_executor.ids import Ref
from cellar_executor.service import Service

REF = Ref("alice", "s")


class FakeService:
    """Its own holding and status, too."""

    instance = "here"
    draining = False

    def __init__(self) -> None:
        self.holding = self.status = self
        self.background = Background()
        self.places: dict[Ref, str] = {}
        self.looks = 0
        self.looked = asyncio.Semaphore(0)
        self.store_down = False

    async def elsewhere(self, ref: Ref) -> str | None:
        self.looks += 1
        self.looked.release()
        if self.store_down:
            raise StoreUnavailable("down")
        return self.places.get(ref)


class Here:
    """The routes of this server."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})


class Client:
    """One request to this server, behind its gate."""

    def __init__(self, method: str, path: str, body: bytes = b"", query: bytes = b"", **headers: str) -> None:
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self.leaves = asyncio.Event()
        self._body: bytes | None = body
        self.scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": [(name.replace("_", "-").lower().encode(), text.encode()) for name, text in headers.items()],
            "state": {"tenant": "alice"},
        }

    async def ask(self, app: Forward) -> tuple[int, str, bytes]:
        """Status, code if it is a problem, and body."""
        await app(self.scope, self.receive, self._send)
        start, body = self.sent.get_nowait(), b""
        while not self.sent.empty():
            message = self.sent.get_nowait()
            body += message["body"]
        assert not message.get("more_body", False), "the reply is not complete"
        kind = dict(start["headers"]).get(b"content-type", b"")
        return start["status"], json.loads(body)["code"] if b"problem" in kind else "", body

    async def receive(self) -> Message:
        if self._body is None:
            await self.leaves.wait()
            return {"type": "http.disconnect"}
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send(self, message: Message) -> None:
        self.sent.put_nowait(message)


class Setting:
    def __init__(self, peers: Peers, service: FakeService) -> None:
        self.service = service
        self.here = Here()
        self.app = Forward(self.here, service=cast(Service, service), peers=peers)


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@pytest.fixture
async def setting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    monkeypatch.setattr(peers, "LOOK_EVERY_S", 0.01)
    service = FakeService()
    async with open_peers(cast(Service, service)) as opened:
        yield Setting(opened, service)


@asynccontextmanager
async def owner(setting: Setting, handler: Handler) -> AsyncIterator[str]:
    """Another server, which holds the session."""
    async with RawTestServer(handler) as server:
        await server.start_server(handler_cancellation=True)
        setting.service.places[REF] = url = str(server.make_url("/"))
        yield url


async def never(_: web.BaseRequest) -> web.Response:
    raise AssertionError("nothing is to come here")


async def test_what_is_not_elsewhere_is_answered_here(setting: Setting) -> None:
    for path in ("/v1/sessions/s", "/v1/sessions/s/run", "/v1/sessions/s/files/a\nb"):
        assert await Client("GET", path).ask(setting.app) == (200, "", b"here")
    assert setting.here.paths == ["/v1/sessions/s", "/v1/sessions/s/run", "/v1/sessions/s/files/a\nb"]
    assert setting.service.looks == 3


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/v1/sessions", "/v1/sessions/", "/v1/execute", "/v1/batch", "/v1/sessions/-", "/v1/sessions/s\n"],
)
async def test_what_is_on_no_session_is_answered_here_unasked(setting: Setting, path: str) -> None:
    async with owner(setting, never):
        assert await Client("POST", path).ask(setting.app) == (200, "", b"here")
    assert setting.service.looks == 0


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("body", [b"", b"\x00\xff", b"x" * (peers.LARGE_BODY + 1)], ids=["no", "short", "long"])
async def test_the_owner_gets_what_came(setting: Setting, method: str, body: bytes) -> None:
    got: list[Any] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        got.append((request.method, request.raw_path, await request.content.read(), dict(request.headers)))
        return web.Response()

    headers = {
        "Authorization": "Bearer key",
        "Idempotency-Key": "k",
        "Content-Type": "application/json",
        "Traceparent": "00-1-2-03",
        "Accept": "text/event-stream",
        "User-Agent": "me",
    }
    hop = {"Host": "front", "Connection": "close, X-Hop", "X-Hop": "1", "Keep-Alive": "1", "Expect": "100-continue"}
    async with owner(setting, handler) as url:
        client = Client(method, "/v1/sessions/s/files/a b", body, b"x=%2F&y=", **headers, **hop)
        client.scope["raw_path"] = raw = b"/v1/sessions/s/files/%61%20b%2F..%2Fc/../%0A"
        assert await client.ask(setting.app) == (200, "", b"")
    [(*request, received)] = got
    assert request == [method, f"{raw.decode()}?x=%2F&y=", body]
    length = {"Content-Length": str(len(body))} if body or method == "POST" else {}
    received.pop("Content-Length") if not length and received.get("Content-Length") == "0" else None
    named = {name.title(): value for name, value in received.items()}
    assert named == {**headers, "Host": url.split("/")[2], "Cellar-Forwarded": "here", **length}


async def test_the_answer_comes_back_as_it_was(setting: Setting) -> None:
    async def handler(_: web.BaseRequest) -> web.Response:
        headers = [
            ("X-Two", "1"),
            ("X-Two", "2"),
            ("Content-Encoding", "gzip"),
            ("Connection", "X-Hop"),
            ("X-Hop", "1"),
        ]
        return web.Response(status=410, body=b"not gzip", headers=[*headers, ("Content-Type", "application/x")])

    async with owner(setting, handler):
        client = Client("GET", "/v1/sessions/s")
        await setting.app(client.scope, client.receive, client._send)
    start = client.sent.get_nowait()
    assert start["status"] == 410
    assert sorted(header for header in start["headers"] if header[0] != b"server") == [
        (b"content-encoding", b"gzip"),
        (b"content-length", b"8"),
        (b"content-type", b"application/x"),
        (b"x-two", b"1"),
        (b"x-two", b"2"),
    ]
    assert client.sent.get_nowait()["body"] == b"not gzip"


async def test_a_redirect_and_a_cookie_are_the_clients(setting: Setting) -> None:
    cookies = []

    async def handler(request: web.BaseRequest) -> web.Response:
        cookies.append(request.headers.get("Cookie"))
        return web.Response(status=307, headers={"Location": "/v1/sessions/s", "Set-Cookie": "a=1"})

    async with owner(setting, handler) as url:
        setting.service.places[REF] = url.replace("127.0.0.1", "localhost")  # a name: addresses have no cookies
        for _ in range(2):
            assert (await Client("GET", "/v1/sessions/s").ask(setting.app))[0] == 307
    assert cookies == [None, None]


async def test_the_answer_flows(setting: Setting) -> None:
    seen = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await seen.wait()
        await response.write(b"last")
        return response

    async with owner(setting, handler), asyncio.timeout(5):
        client = Client("GET", "/v1/sessions/s")
        asking = asyncio.create_task(setting.app(client.scope, client.receive, client._send))
        await client.sent.get()
        assert await client.sent.get() == {"type": "http.response.body", "body": b"first", "more_body": True}
        seen.set()
        await asking
    assert client.sent.get_nowait()["body"] == b"last"


async def test_what_was_sent_on_goes_no_further(setting: Setting) -> None:
    async with owner(setting, never):
        client = Client("POST", "/v1/sessions/s/run", Cellar_Forwarded="another")
        await setting.app(client.scope, client.receive, client._send)
    start = client.sent.get_nowait()
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"1")
    assert json.loads(client.sent.get_nowait()["body"])["code"] == "owner_unavailable"


async def test_an_owner_that_cannot_be_reached(setting: Setting) -> None:
    async with owner(setting, never):
        pass
    assert (await Client("POST", "/v1/sessions/s/run").ask(setting.app))[:2] == (503, "owner_unavailable")


async def test_redis_is_down(setting: Setting) -> None:
    setting.service.store_down = True
    assert (await Client("GET", "/v1/sessions/s").ask(setting.app))[:2] == (503, "store_unavailable")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_nothing_is_sent_twice(setting: Setting, method: str) -> None:
    """Not even on a connection that was good before, which aiohttp by itself would try again."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        async for line in reader:
            if line == b"\r\n":
                asked += 1
                if asked == 2:
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        setting.service.places[REF] = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        assert (await Client("GET", "/v1/sessions/s").ask(setting.app))[0] == 200
        assert (await Client(method, "/v1/sessions/s").ask(setting.app))[:2] == (503, "owner_unavailable")
    assert asked == 2


class Hanging:
    """An owner that never answers, and knows whether its client is still there."""

    def __init__(self, begins: bool = False) -> None:
        self.asked = asyncio.Event()
        self.left = asyncio.Event()
        self._begins = begins

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        if self._begins:
            await response.prepare(request)
            await response.write(b"begun")
        self.asked.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.left.set()
        return response


async def test_a_session_that_leaves_its_owner_is_waited_for_no_longer(setting: Setting) -> None:
    async with owner(setting, hanging := Hanging()), asyncio.timeout(5):
        asking = asyncio.create_task(Client("POST", "/v1/sessions/s/run").ask(setting.app))
        await hanging.asked.wait()
        setting.service.places[REF] = "http://elsewhere"
        assert (await asking)[:2] == (503, "owner_unavailable")
        await hanging.left.wait()


async def test_while_redis_is_down_the_owner_is_waited_for(setting: Setting) -> None:
    async with owner(setting, hanging := Hanging()), asyncio.timeout(5):
        asking = asyncio.create_task(Client("POST", "/v1/sessions/s/run").ask(setting.app))
        await hanging.asked.wait()
        setting.service.store_down = True
        for _ in range(5):
            await setting.service.looked.acquire()
        assert not asking.done()
        asking.cancel()
        await hanging.left.wait()


async def test_the_owner_may_give_the_session_up_with_its_answer(setting: Setting) -> None:
    """As it does for a DELETE: gone in Redis, and the answer on its way."""

    async def handler(_: web.BaseRequest) -> web.Response:
        del setting.service.places[REF]
        for _look in range(2):  # at the request, and while it waits
            await setting.service.looked.acquire()
        return web.Response(status=204)

    async with owner(setting, handler):
        assert (await Client("DELETE", "/v1/sessions/s").ask(setting.app))[0] == 204


@pytest.mark.parametrize("begins", [False, True])
async def test_the_owner_sees_the_client_go_away(setting: Setting, begins: bool) -> None:
    async with owner(setting, hanging := Hanging(begins)), asyncio.timeout(5):
        client = Client("POST", "/v1/sessions/s/run")
        asking = asyncio.create_task(setting.app(client.scope, client.receive, client._send))
        await hanging.asked.wait()
        client.leaves.set()
        await asking
        await hanging.left.wait()


async def test_an_answer_that_breaks_off_stays_incomplete(setting: Setting) -> None:
    async with owner(setting, hanging := Hanging(begins=True)), asyncio.timeout(5):
        client = Client("POST", "/v1/sessions/s/run")
        asking = asyncio.create_task(setting.app(client.scope, client.receive, client._send))
        await hanging.asked.wait()
        assert (await client.sent.get())["status"] == 200
        del setting.service.places[REF]
        await asking
    while not client.sent.empty():
        assert client.sent.get_nowait()["more_body"] is True


async def test_a_server_that_stops_sends_no_new_work_on(setting: Setting) -> None:
    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(text="there")

    async with owner(setting, handler):
        setting.service.draining = True
        assert (await Client("POST", "/v1/sessions/s/run").ask(setting.app))[:2] == (503, "shutting_down")
        assert await Client("GET", "/v1/sessions/s").ask(setting.app) == (200, "", b"there")


async def test_a_server_that_stops_waits_and_then_says_so(setting: Setting) -> None:
    async with owner(setting, hanging := Hanging()), asyncio.timeout(5):
        asking = asyncio.create_task(Client("POST", "/v1/sessions/s/run").ask(setting.app))
        await hanging.asked.wait()
        await setting.service.background.drain(0.05)
        assert not asking.done()
        await setting.service.background.cancel()
        assert (await asking)[:2] == (503, "owner_unavailable")
        await hanging.left.wait()

"""Both transports against a server of raw bytes: what goes out, what comes back, and every way in which it can fail."""

import asyncio
import gzip
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import pytest

from cellar_client.errors import ConnectionFailed, InvalidReply, RequestTimeout, TransportError
from cellar_client.transport import HttpReply, HttpRequest, Transport, aio, base_of, sync
from cellar_client.transport.aio import AiohttpTransport
from cellar_client.transport.sync import Urllib3Transport
from tests.unit.client.raw_server import Connection, RawServer, answers

GET = HttpRequest("GET", "/v1/info")
POST = HttpRequest("POST", "/v1/sessions", b"{}")
SILENCE_S = 0.2

Open = Callable[..., AbstractContextManager[Transport]]


class Driven:
    """The async transport in an event loop of its own, driven call by call."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        self._runner = asyncio.Runner()
        self._transport = AiohttpTransport(url, api_key=api_key, timeout_s=timeout_s)

    def send(self, request: HttpRequest) -> HttpReply:
        return self._runner.run(self._transport.send(request))

    def idle(self, seconds: float) -> None:
        self._runner.run(asyncio.sleep(seconds))

    def close(self) -> None:
        self._runner.run(self._transport.close())
        self._runner.close()


@pytest.fixture(params=[Driven, Urllib3Transport], ids=["aiohttp", "urllib3"])
def opened(request: pytest.FixtureRequest) -> Open:
    """Opens a transport to a URL, as a context manager."""

    @contextmanager
    def open_transport(url: str, *, api_key: str | None = None, timeout_s: float = 5.0) -> Iterator[Transport]:
        transport: Transport = request.param(url, api_key=api_key, timeout_s=timeout_s)
        try:
            yield transport
        finally:
            transport.close()

    return open_transport


def outcome(transport: Transport, request: HttpRequest) -> HttpReply | type[TransportError]:
    try:
        return transport.send(request)
    except TransportError as error:
        return type(error)


def test_the_request_arrives_whole_and_the_reply_comes_back_whole(opened: Open) -> None:
    def script(connection: Connection) -> None:
        connection.receive()
        connection.answer(b"\x00" * 200_000, status="429 Too Many Requests", headers=("Retry-After: 3",))

    request = HttpRequest("POST", "/v1/a%20b%2Fc", b"\xff{}", {"Idempotency-Key": "k"}, {"cursor": "/"})
    with RawServer(script) as server, opened(f"{server.url}/under/", api_key="key") as transport:
        assert transport.send(request) == HttpReply(429, b"\x00" * 200_000, "3")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert first == "POST /under/v1/a%20b%2Fc?cursor=%2F HTTP/1.1"
    assert {"Authorization: Bearer key", "Idempotency-Key: k", "Content-Length: 3"} <= set(headers)
    assert body == b"\xff{}"


def test_a_connection_is_kept(opened: Open) -> None:
    with RawServer(answers) as server, opened(server.url) as transport:
        assert [transport.send(POST).content for _ in range(3)] == [b"{}"] * 3
        assert server.connections == 1


def test_a_kept_connection_that_the_server_closed_is_not_used(opened: Open) -> None:
    closed = threading.Event()

    def script(connection: Connection) -> None:
        connection.receive()
        connection.answer()
        connection.socket.close()
        closed.set()

    with RawServer(script) as server, opened(server.url) as transport:
        transport.send(POST)
        closed.wait()
        if isinstance(transport, Driven):
            transport.idle(0.1)
        transport.send(POST)
        assert (server.connections, len(server.requests)) == (2, 2)


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
def test_what_may_have_been_sent_is_not_sent_again(opened: Open, method: str, reused: bool) -> None:
    def script(connection: Connection) -> None:
        if reused:
            connection.receive()
            connection.answer()
        connection.receive()

    with RawServer(script) as server, opened(server.url) as transport:
        if reused:
            transport.send(HttpRequest("GET", "/first"))
        assert outcome(transport, HttpRequest(method, "/cut")) is ConnectionFailed
        assert sum(b"/cut" in request for request in server.requests) == 1


def test_a_reply_cut_in_the_middle_is_a_failed_connection(opened: Open) -> None:
    def script(connection: Connection) -> None:
        connection.receive()
        connection.send("HTTP/1.1 200 OK", "Content-Length: 100", body=b"half")

    with RawServer(script) as server, opened(server.url) as transport:
        assert outcome(transport, POST) is ConnectionFailed


@pytest.mark.parametrize("said", ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"])
def test_silence_is_a_timeout(opened: Open, said: str) -> None:
    def script(connection: Connection) -> None:
        connection.receive()
        connection.socket.sendall(said.encode())
        connection.receive()

    with RawServer(script) as server, opened(server.url) as transport:
        assert outcome(transport, HttpRequest("POST", "/", silence_s=SILENCE_S)) is RequestTimeout
    with RawServer(script) as server, opened(server.url, timeout_s=SILENCE_S) as transport:
        assert outcome(transport, POST) is RequestTimeout


def test_a_request_may_allow_a_longer_silence_than_the_others(opened: Open) -> None:
    def script(connection: Connection) -> None:
        connection.receive()
        time.sleep(2 * SILENCE_S)
        connection.answer(b"late")

    with RawServer(script) as server, opened(server.url, timeout_s=SILENCE_S) as transport:
        assert transport.send(HttpRequest("POST", "/", silence_s=30.0)).content == b"late"


def test_a_reply_that_never_falls_silent_may_take_long(opened: Open) -> None:
    def script(connection: Connection) -> None:
        connection.receive()
        connection.send("HTTP/1.1 200 OK", "Content-Length: 8")
        for _ in range(8):
            time.sleep(SILENCE_S / 4)
            connection.socket.sendall(b"x")

    with RawServer(script) as server, opened(server.url, timeout_s=SILENCE_S) as transport:
        assert transport.send(POST).content == b"x" * 8


def test_a_server_that_does_not_read_is_not_waited_for_for_ever(opened: Open) -> None:
    done = threading.Event()

    def script(connection: Connection) -> None:
        done.wait()

    with RawServer(script) as server, opened(server.url, timeout_s=SILENCE_S) as transport:
        assert outcome(transport, HttpRequest("PUT", "/", bytes(64_000_000))) in (RequestTimeout, ConnectionFailed)
        done.set()
        if isinstance(transport, Driven):
            transport.idle(0.1)  # until the connection is reset: what it still had to send is given up then


def test_where_nobody_listens_the_message_says_what_was_asked(opened: Open) -> None:
    with RawServer(answers) as server:
        url = server.url
    with opened(url) as transport, pytest.raises(ConnectionFailed, match=f"GET {url}/v1/info: "):
        transport.send(GET)


def test_a_compressed_reply_is_read_and_a_broken_one_is_none(opened: Open) -> None:
    def script(connection: Connection) -> None:
        connection.receive()
        connection.answer(gzip.compress(b"small"), headers=("Content-Encoding: gzip",))
        connection.receive()
        connection.answer(b"not gzip at all", headers=("Content-Encoding: gzip",))

    with RawServer(script) as server, opened(server.url) as transport:
        assert transport.send(GET).content == b"small"
        assert outcome(transport, POST) is InvalidReply


def test_what_is_no_http_is_a_failed_connection(opened: Open) -> None:
    def script(connection: Connection) -> None:
        connection.receive()
        connection.socket.sendall(b"220 mail.example.org ESMTP\r\n")

    with RawServer(script) as server, opened(server.url) as transport:
        assert outcome(transport, POST) is ConnectionFailed


def test_what_is_no_tls_is_a_failed_connection(opened: Open) -> None:
    def script(connection: Connection) -> None:
        connection.socket.recv(1)
        connection.answer()

    with RawServer(script) as server, opened(server.url.replace("http:", "https:")) as transport:
        assert outcome(transport, POST) is ConnectionFailed


def test_a_redirection_is_not_followed(opened: Open) -> None:
    def script(connection: Connection) -> None:
        connection.receive()
        connection.answer(status="307 Temporary Redirect", headers=("Location: /elsewhere",))

    with RawServer(script) as server, opened(server.url) as transport:
        assert transport.send(POST).status == 307
        assert len(server.requests) == 1


def test_a_server_of_the_new_internet_is_reached(opened: Open) -> None:
    with RawServer(answers, host="::1") as server, opened(server.url) as transport:
        assert transport.send(POST).status == 200


def test_no_proxy_of_the_environment_is_asked(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with RawServer(answers) as server, opened(server.url) as transport:
        assert transport.send(POST).status == 200


@pytest.mark.parametrize(
    "url",
    ["", "cellar.test", "ftp://cellar.test", "http://", "http://a:b:c", "http://a:0", "http://a/?q", "http://u@a"],
)
def test_an_unusable_url_is_refused_at_once(opened: Open, url: str) -> None:
    with pytest.raises(ValueError, match="URL"), opened(url):
        pass
    assert base_of("http://[::1]:80/under/") == "http://[::1]:80/under"


class AtOnce:
    """A script that counts how many requests are being answered at the same time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, connection: Connection) -> None:
        while connection.receive():
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.05)
            with self._lock:
                self.now -= 1
            connection.answer()


async def test_more_requests_than_connections_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "MAX_CONNECTIONS", 2)
    with RawServer(AtOnce()) as server:
        transport = AiohttpTransport(server.url, api_key=None, timeout_s=5.0)
        await asyncio.gather(*(transport.send(POST) for _ in range(6)))
        await transport.close()
        assert isinstance(server.script, AtOnce)
        assert (server.script.most, server.connections) == (2, 2)


def test_more_threads_than_connections_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "MAX_CONNECTIONS", 2)
    with RawServer(AtOnce()) as server, ThreadPoolExecutor(6) as threads:
        transport = Urllib3Transport(server.url, api_key=None, timeout_s=5.0)
        list(threads.map(transport.send, [POST] * 6))
        transport.close()
        assert isinstance(server.script, AtOnce)
        assert (server.script.most, server.connections) == (2, 2)


async def test_the_connection_of_a_cancelled_request_is_not_used_again() -> None:
    received = threading.Event()

    def script(connection: Connection) -> None:
        while connection.receive():
            received.set()
            if connection.number == 0:
                time.sleep(SILENCE_S)
            connection.answer(b"of %d" % connection.number)

    with RawServer(script) as server:
        transport = AiohttpTransport(server.url, api_key=None, timeout_s=5.0)
        cancelled = asyncio.create_task(transport.send(POST))
        await asyncio.to_thread(received.wait)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert (await transport.send(POST)).content == b"of 1"
        await transport.close()

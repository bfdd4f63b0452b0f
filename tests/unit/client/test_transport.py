from collections.abc import Iterator

import httpx
import pytest

from cellar_client.errors import ConnectionFailed, InvalidReply, RequestTimeout
from cellar_client.transport import AsyncHttpxTransport, HttpReply, HttpRequest, HttpxTransport, transport_error

URL = "http://cellar.test"


def _all_below(base: type[httpx.TransportError]) -> Iterator[type[httpx.TransportError]]:
    for below in base.__subclasses__():
        yield below
        yield from _all_below(below)


def _error(kind: type[httpx.TransportError], message: str = "") -> httpx.TransportError:
    return kind(message, request=httpx.Request("GET", f"{URL}/v1/info"))


@pytest.mark.parametrize("kind", [httpx.TransportError, *_all_below(httpx.TransportError)])
def test_every_transport_error_of_httpx_has_a_name_of_ours(kind: type[httpx.TransportError]) -> None:
    unanswered = issubclass(kind, httpx.ReadTimeout | httpx.WriteTimeout)
    assert type(transport_error(_error(kind))) is (RequestTimeout if unanswered else ConnectionFailed)


def test_the_message_says_what_was_asked_and_what_happened() -> None:
    assert str(transport_error(_error(httpx.ConnectError, "refused"))) == f"GET {URL}/v1/info: refused"
    assert str(transport_error(_error(httpx.ReadTimeout))) == f"GET {URL}/v1/info: ReadTimeout"


def test_the_request_arrives_whole_and_the_reply_comes_back_whole() -> None:
    def server(request: httpx.Request) -> httpx.Response:
        assert request.method == "POST"
        assert str(request.url) == f"{URL}/under/v1/sessions?cursor=%2F"
        assert request.headers["Authorization"] == "Bearer key"
        assert request.headers["Idempotency-Key"] == "k"
        return httpx.Response(429, content=request.content, headers={"Retry-After": "3"})

    transport = HttpxTransport(f"{URL}/under", api_key="key", timeout_s=1.0, wire=httpx.MockTransport(server))
    request = HttpRequest("POST", "/v1/sessions", b"{}", {"Idempotency-Key": "k"}, {"cursor": "/"})
    assert transport.send(request) == HttpReply(429, b"{}", "3")
    transport.close()


@pytest.mark.parametrize(("silence_s", "read_s"), [(None, 30.0), (65.0, 65.0)])
async def test_a_request_may_allow_a_longer_silence_than_the_others(silence_s: float | None, read_s: float) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        assert request.extensions["timeout"] == {"connect": 10.0, "read": read_s, "write": 30.0, "pool": None}
        return httpx.Response(200)

    transport = AsyncHttpxTransport(URL, api_key=None, timeout_s=30.0, wire=httpx.MockTransport(server))
    assert await transport.send(HttpRequest("POST", "/v1/execute", silence_s=silence_s)) == HttpReply(200, b"")
    await transport.close()


def test_a_reply_that_cannot_be_decoded_is_no_reply() -> None:
    wire = httpx.MockTransport(
        lambda _: httpx.Response(200, stream=httpx.ByteStream(b"not gzip at all"), headers={"Content-Encoding": "gzip"})
    )
    with pytest.raises(InvalidReply):
        HttpxTransport(URL, api_key=None, timeout_s=1.0, wire=wire).send(HttpRequest("GET", "/v1/info"))


@pytest.mark.parametrize("url", ["", "cellar.test", "ftp://cellar.test", "http://", "http://a:b:c"])
def test_an_unusable_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        HttpxTransport(url, api_key=None, timeout_s=1.0)

"""The gate in front of the routes, as plain ASGI."""

import pytest
from starlette.types import Message, Receive, Scope, Send

from cellar_executor.errors import CannotServe
from cellar_executor.http.gate import Gate, refuse_open_house
from cellar_executor.tenancy.tenants import Quota, Tenants

QUOTA = Quota(sessions=1, running=1)
KEYS = {"0123456789abcdef": "alice", "fedcba9876543210": "bob"}


class Inner:
    """What stands behind the gate; remembers what came through."""

    tenant: str | None = None
    body: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.tenant = scope.get("state", {}).get("tenant")
        self.body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def send_through(inner: Inner, chunks: list[bytes], headers: dict[str, str], keys: dict[str, str] = KEYS) -> int:
    left = list(chunks)
    status = 0

    async def receive() -> Message:
        if left == [LEAVES]:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/execute", "headers": raw}
    await Gate(inner, tenants=Tenants(keys, QUOTA), max_body_bytes=10)(scope, receive, send)
    return status


LEAVES = b"the client leaves"
CHUNKED = {"transfer-encoding": "chunked", "authorization": "Bearer fedcba9876543210"}


async def test_a_key_opens_and_names_its_tenant() -> None:
    inner = Inner()
    assert await send_through(inner, [b"12345", b"67890"], CHUNKED) == 200
    assert (inner.tenant, inner.body) == ("bob", b"1234567890")


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic fedcba9876543210", "Bearer \xff"]
)
async def test_anything_else_stays_outside(authorization: str) -> None:
    inner = Inner()
    assert await send_through(inner, [b""], {**CHUNKED, "authorization": authorization}) == 401
    assert inner.body is None


async def test_a_body_is_refused_as_soon_as_it_is_too_long() -> None:
    endless = [b"x" * 6] * 1000
    inner = Inner()
    assert await send_through(inner, endless, CHUNKED) == 413
    assert inner.body is None


@pytest.mark.parametrize("headers", [{}, {"content-length": "9"}])
async def test_of_a_client_that_leaves_in_the_middle_of_its_body_nothing_comes_through(
    headers: dict[str, str],
) -> None:
    inner = Inner()
    assert await send_through(inner, [b"123", LEAVES], {**CHUNKED, **headers}) == 0
    assert inner.body is None


async def test_a_body_said_to_be_too_long_is_not_read() -> None:
    headers = {"content-length": "11", "authorization": CHUNKED["authorization"]}
    assert await send_through(Inner(), [], headers) == 413


async def test_without_a_body_nothing_is_read() -> None:
    inner = Inner()
    assert await send_through(inner, [], {"authorization": CHUNKED["authorization"]}) == 200
    assert inner.body == b""


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:8080", 200), ("[::1]", 200), ("evil.example", 401), ("", 401)]
)
async def test_without_keys_only_names_of_this_machine_are_answered(host: str, status: int) -> None:
    assert await send_through(Inner(), [], {"host": host}, keys={}) == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "http://127.0.0.1", "sec-fetch-site": "same-site"}, 200),
        ({"origin": "https://evil.example"}, 401),
        ({"origin": "https://localhost.evil.example"}, 401),
        ({"origin": "null"}, 401),
        ({"origin": ""}, 401),
        ({"origin": "http://[::1"}, 401),
        ({"sec-fetch-site": "cross-site"}, 401),
    ],
)
async def test_without_keys_pages_from_elsewhere_are_refused(headers: dict[str, str], status: int) -> None:
    assert await send_through(Inner(), [], {"host": "localhost", **headers}, keys={}) == status


async def test_with_keys_this_machine_needs_one_too() -> None:
    assert await send_through(Inner(), [], {"host": "localhost"}) == 401


async def test_with_a_key_an_origin_does_not_matter() -> None:
    assert await send_through(Inner(), [b""], {**CHUNKED, "origin": "https://page.example"}) == 200


def test_without_keys_the_house_is_open_to_this_machine_alone() -> None:
    refuse_open_house("127.0.0.1", Tenants({}, QUOTA))
    refuse_open_house("0.0.0.0", Tenants(KEYS, QUOTA))
    with pytest.raises(CannotServe, match="API_KEYS"):
        refuse_open_house("0.0.0.0", Tenants({}, QUOTA))

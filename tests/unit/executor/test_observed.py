"""Each request has an id: the client's own where it is harmless, on the answer and on every line of the log."""

import json
import logging

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cellar_executor.http.observed import Observed
from cellar_executor.service import Service
from cellar_executor.telemetry.logs import JsonLines


async def test_the_clients_own_id_is_echoed(http: httpx.AsyncClient) -> None:
    reply = await http.get("/healthz", headers={"X-Request-Id": "abc-123.x_y"})
    assert reply.headers["x-request-id"] == "abc-123.x_y"


@pytest.mark.parametrize("given", [None, "", "two words", "a" * 129, 'quo"te', "ü"])
async def test_any_other_gets_a_new_one(http: httpx.AsyncClient, given: str | None) -> None:
    headers = [] if given is None else [(b"X-Request-Id", given.encode())]
    first, second = [(await http.get("/healthz", headers=headers)).headers["x-request-id"] for _ in range(2)]
    assert first != second
    assert given not in (first, second)


async def test_what_the_gate_refuses_has_one_too(http: httpx.AsyncClient) -> None:
    reply = await http.get("/v1/info", headers={"Host": "evil.example", "X-Request-Id": "refused-1"})
    assert (reply.status_code, reply.headers["x-request-id"]) == (401, "refused-1")


async def test_a_failure_is_logged_with_it(
    http: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service.status, "health", lambda: 1 / 0)
    caplog.handler.setFormatter(JsonLines("instance-1"))
    reply = await http.get("/healthz", headers={"X-Request-Id": "fails-1"})
    assert (reply.status_code, reply.headers["x-request-id"]) == (500, "fails-1")
    [line] = [json.loads(line) for line in caplog.text.splitlines() if '"error"' in line]
    assert line["request_id"] == "fails-1"
    assert "ZeroDivisionError" in line["exception"]


async def test_a_run_is_logged_with_all_its_ids_and_none_of_its_text(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.setFormatter(JsonLines("instance-1"))
    await http.post("/v1/sessions", json={"session_id": "s"})
    await http.post(
        "/v1/sessions/s/run",
        json={"code": "print('secret-' + 'output')", "cell_id": "c"},
        headers={"X-Request-Id": "runs-1", "Authorization": "Bearer secret-key"},
    )
    lines = [json.loads(line) for line in caplog.text.splitlines() if line.startswith("{")]
    [cell] = [line for line in lines if line["message"] == "cell finished"]
    assert cell.items() >= {"request_id": "runs-1", "session_id": "s", "cell_id": "c", "status": "ok"}.items()
    assert cell["run_id"]
    assert cell["instance"] == "instance-1"
    [answered] = [line for line in lines if line["message"] == "request answered" and line["request_id"] == "runs-1"]
    assert answered.items() >= {"route": "/v1/sessions/{session_id}/run", "method": "POST", "status": 200}.items()
    assert "secret" not in caplog.text


async def test_whoever_the_request_is_sent_on_to_gets_its_id() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await Response()(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(Observed(app)), base_url="http://localhost") as http:
        reply = await http.get("/", headers={"X-Request-Id": "not plain"})
    assert [value.decode() for name, value in seen if name == b"x-request-id"] == [reply.headers["x-request-id"]]

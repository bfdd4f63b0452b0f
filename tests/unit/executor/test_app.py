"""HTTP through the whole application, without a server: what only a failing part below makes visible."""

from typing import get_args

import httpx
import pytest

from cellar_client.schemas import ErrorCode
from cellar_executor.errors import STATUS, Refusal
from cellar_executor.http.problems import respond
from cellar_executor.service import Service
from tests.unit.executor.fakes import InProcessSupervisor


async def test_a_failure_of_the_server_tells_nothing_about_it(
    http: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("with a secret in it")

    monkeypatch.setattr(service.status, "info", fail)
    reply = await http.get("/v1/info")
    assert (reply.status_code, reply.json()["code"]) == (500, "internal_error")
    assert "secret" not in reply.text


async def test_no_kernel_is_said_so_and_may_be_tried_again(
    http: httpx.AsyncClient, supervisor: InProcessSupervisor
) -> None:
    supervisor.full = True
    reply = await http.post("/v1/sessions")
    assert (reply.status_code, reply.json()["code"], reply.headers["Retry-After"]) == (503, "kernel_unavailable", "1")


async def test_a_refused_execution_may_be_tried_again_with_its_key(
    http: httpx.AsyncClient, supervisor: InProcessSupervisor
) -> None:
    supervisor.full = True
    request = {"json": {"code": "print(1)"}, "headers": {"Idempotency-Key": "k"}}
    assert (await http.post("/v1/execute", **request)).status_code == 503  # type: ignore[arg-type]  # two kinds of values
    supervisor.full = False
    assert (await http.post("/v1/execute", **request)).json()["status"] == "ok"  # type: ignore[arg-type]  # as above


async def test_an_unready_server_answers_503(http: httpx.AsyncClient, supervisor: InProcessSupervisor) -> None:
    supervisor.problem = "the network can be reached"
    reply = await http.get("/readyz")
    assert (reply.status_code, reply.json()["status"]) == (503, "not_ready")


async def test_a_run_that_goes_on_is_accepted_not_answered(
    http: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def goes_on(*_: object) -> None:
        return None

    monkeypatch.setattr(service, "find_run", goes_on)
    reply = await http.get("/v1/sessions/s/runs/r-1")
    assert (reply.status_code, reply.json()) == (202, {"run_id": "r-1"})


async def test_every_route_says_what_it_answers(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    answers = {
        f"{method} {path}": {status for status in route["responses"] if status.startswith("2")}
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    }
    files = "/v1/sessions/{session_id}/files"
    assert answers["post /v1/sessions/{session_id}/fork"] == {"201"}
    assert answers["post /v1/batch"] == answers[f"get {files}"] == answers[f"get {files}/{{path}}"] == {"200"}
    assert answers[f"put {files}/{{path}}"] == answers[f"delete {files}/{{path}}"] == {"204"}
    problems = {
        reply["content"]["application/problem+json"]["schema"]["$ref"]
        for path, methods in document["paths"].items()
        for route in methods.values()
        for status, reply in route["responses"].items()
        if path.startswith("/v1/") and status in ("default", "422")
    }
    assert problems == {"#/components/schemas/Problem"}
    download = document["paths"][f"{files}/{{path}}"]["get"]["responses"]["200"]["content"]
    assert set(download) == {"application/octet-stream"}


def test_every_code_of_the_contract_has_a_status() -> None:
    assert set(STATUS) == set(get_args(ErrorCode))


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_every_problem_is_of_one_form(code: ErrorCode) -> None:
    response = respond(Refusal(code, "why"))
    assert response.status_code == STATUS[code][0]
    assert response.media_type == "application/problem+json"
    assert ("retry-after" in response.headers) == (
        response.status_code in (429, 503) and code != "too_many_cells" or code == "request_in_progress"
    )


async def test_cells_come_in_pages(http: httpx.AsyncClient) -> None:
    await http.post("/v1/sessions", json={"session_id": "s"})
    await http.post("/v1/sessions/s/cells", json={"cells": [{"code": str(i)} for i in range(3)]})

    async def page(**query: int) -> tuple[list[int], int | None]:
        reply = (await http.get("/v1/sessions/s/cells", params=query)).json()
        return [cell["index"] for cell in reply["cells"]], reply["next_after"]

    assert await page() == ([0, 1, 2], None)
    assert await page(limit=2) == ([0, 1], 1)
    assert await page(limit=2, after=1) == ([2], None)
    assert await page(limit=1, after=0) == ([1], 1)
    assert await page(after=2) == await page(after=1000, limit=5) == ([], None)
    assert (await http.get("/v1/sessions/s/cells", params={"limit": 0})).status_code == 422

"""Whatever may be sent by the OpenAPI document, and what may not: the answer is one that the document has."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case

from cellar_executor.http.app import create_app
from tests.executor_process import ExecutorProcess
from tests.integration.executor.conftest import connect

KEY = "a-key-that-opens-the-cellar"
QUICK = {"CELLAR_EXECUTOR_PREIMPORT": "python="}
FLAGS = ("--cell-timeout-s", "1", "--max-sessions", "40")
EXAMPLES = 20

CHECKS = {
    # Which runtimes there are, how high the limits are, which paths a file may have: said by a 422 and by no schema.
    "positive_data_acceptance": {"enabled": False},
    # Their own, and 413: some of what is generated is too long.
    "negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 409, 413, 422]},
}

bounded = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def document(*, keys_required: bool) -> dict[str, Any]:
    service = SimpleNamespace(tenants=SimpleNamespace(keys_required=keys_required))
    return create_app(service, max_body_bytes=0).openapi()  # type: ignore[arg-type]  # all that a document needs of it


def described(document: dict[str, Any], *, thorough: bool) -> schemathesis.BaseSchema:
    """Thorough: not only random requests, but also each boundary of each value."""
    phases = {"coverage": {"enabled": thorough}}
    return schemathesis.openapi.from_dict(
        document, config=schemathesis.Config.from_dict({"checks": CHECKS, "phases": phases})
    )


OPEN, GUARDED = document(keys_required=False), document(keys_required=True)


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with ExecutorProcess(tmp_path_factory.mktemp("open"), *FLAGS, env=QUICK) as server, connect(server) as http:
        yield http


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    keys = {"CELLAR_EXECUTOR_API_KEYS": KEY}
    with (
        ExecutorProcess(tmp_path_factory.mktemp("guarded"), *FLAGS, env={**QUICK, **keys}) as server,
        connect(server, headers={"Authorization": f"Bearer {KEY}"}) as http,
    ):
        yield http


def test_the_servers_say_the_same_of_themselves(open_server: httpx.Client, guarded_server: httpx.Client) -> None:
    assert open_server.get("/openapi.json").json() == OPEN
    assert guarded_server.get("/openapi.json").json() == GUARDED


@described(OPEN, thorough=True).parametrize()
@bounded
def test_without_keys(case: Case[Any], open_server: httpx.Client) -> None:
    check(case, open_server)


@described(GUARDED, thorough=False).parametrize()
@bounded
def test_with_keys(case: Case[Any], guarded_server: httpx.Client) -> None:
    check(case, guarded_server)


def check(case: Case[Any], http: httpx.Client) -> None:
    headers = {"Authorization": http.headers["Authorization"]} if "Authorization" in http.headers else {}
    aim(case, http)
    case.call_and_validate(base_url=str(http.base_url), headers=headers, timeout=30)
    left = http.get("/v1/sessions").json()["sessions"]
    if left:
        http.post("/v1/batch", json={"operations": [{"op": "delete", "session_id": s["session_id"]} for s in left]})


def aim(case: Case[Any], http: httpx.Client) -> None:
    """What is valid goes to a session, a cell, a run and a file that are there, under a key that was never used."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = uuid4().hex
    if "session_id" in case.path_parameters:
        session = f"/v1/sessions/{http.post('/v1/sessions', json={}).json()['session_id']}"
        run = http.post(f"{session}/run", json={"code": "open('file', 'w').write('x')"}).json()
        pending = http.post(f"{session}/cells", json={"code": "1"}).json()["cells"][0]
        there = {
            "session_id": run["session_id"],
            "run_id": run["run_id"],
            "cell_id": pending["cell_id"],
            "path": "file",
        }
        case.path_parameters.update({name: there[name] for name in case.path_parameters})

"""The document as such; that the server keeps to it is tested in tests/integration/executor/test_openapi.py."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest

from cellar_client.schemas import ErrorCode
from cellar_executor.errors import RETRY_AFTER_S, STATUS
from cellar_executor.http.app import create_app
from cellar_executor.http.openapi import ALWAYS, refusals
from cellar_executor.http.problems import MEDIA_TYPE

Document = dict[str, Any]


@pytest.fixture
def tenants() -> SimpleNamespace:
    return SimpleNamespace(keys_required=False)


@pytest.fixture
def document(tenants: SimpleNamespace) -> Document:
    return create_app(SimpleNamespace(tenants=tenants), max_body_bytes=0).openapi()  # type: ignore[arg-type]


def operations(document: Document) -> list[tuple[str, str, Document]]:
    return [(path, method, said) for path, of_path in document["paths"].items() for method, said in of_path.items()]


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_a_refusal_is_under_its_status_and_says_when_to_come_back(code: ErrorCode) -> None:
    said = refusals(code)[STATUS[code][0]]
    assert f"`{code}`" in said["description"]
    assert set(said["content"]) == {MEDIA_TYPE}
    assert code not in RETRY_AFTER_S or "Retry-After" in said["headers"]


def test_any_route_of_v1_says_what_any_may_refuse(document: Document) -> None:
    for path, _, said in operations(document):
        if path.startswith("/v1/"):
            assert {str(STATUS[code][0]) for code in ALWAYS} <= set(said["responses"])


def test_no_refusal_is_described_as_plain_json(document: Document) -> None:
    for path, _, said in operations(document):
        refused = [reply for status, reply in said["responses"].items() if status >= "400" and path.startswith("/v1/")]
        assert all(set(reply["content"]) == {MEDIA_TYPE} for reply in refused)


def test_a_key_is_asked_for_once_there_is_one(tenants: SimpleNamespace) -> None:
    app = create_app(SimpleNamespace(tenants=tenants), max_body_bytes=0)  # type: ignore[arg-type]
    assert app.openapi()["security"] == []
    tenants.keys_required = True
    assert app.openapi()["security"] == [{"key": []}]
    assert all(said["security"] == [] for path, _, said in operations(app.openapi()) if not path.startswith("/v1/"))


def test_all_that_is_referred_to_is_there(document: Document) -> None:
    def references(part: object) -> set[str]:
        if isinstance(part, dict):
            own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
            return own.union(*map(references, part.values()))
        return set().union(*map(references, part)) if isinstance(part, list) else set()

    there = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= there


def test_what_may_be_replayed_says_how_it_is_told(document: Document) -> None:
    run = document["paths"]["/v1/sessions/{session_id}/run"]["post"]
    assert "Idempotency-Replayed" in run["responses"]["200"]["headers"]

"""Batches on a real server."""

from typing import Any

import httpx

from tests.executor_process import ExecutorProcess


def post(http: httpx.Client, operations: list[dict[str, Any]], **headers: str) -> list[Any]:
    reply = http.post("/v1/batch", json={"operations": operations}, headers=headers)
    assert reply.status_code == 200, reply.text
    return [(result["status"], result["body"]) for result in reply.json()["results"]]


def rollouts(names: str) -> list[dict[str, Any]]:
    return [
        operation
        for name in names
        for operation in (
            {"op": "create", "session_id": f"batch-{name}"},
            {"op": "queue", "session_id": f"batch-{name}", "code": f"x = {name!r}"},
            {"op": "run", "session_id": f"batch-{name}", "code": "print(x)"},
            {"op": "delete", "session_id": f"batch-{name}"},
        )
    ]


def test_whole_rollouts_in_one_request_and_the_same_again_with_the_key(http: httpx.Client) -> None:
    key = {"Idempotency-Key": "rollouts"}
    results = post(http, rollouts("abcd"), **key)
    assert [status for status, _ in results] == [201, 201, 200, 204] * 4
    assert [body["stdout"] for _, body in results[2::4]] == ["a\n", "b\n", "c\n", "d\n"]
    assert post(http, rollouts("abcd"), **key) == results


def test_errors_are_results(http: httpx.Client) -> None:
    results = post(
        http,
        [
            {"op": "run", "session_id": "none", "code": "1"},
            {"op": "create", "limits": {"memory_mb": 10**6}},
            {"op": "execute", "code": "1 / 0"},
            {"op": "delete", "session_id": "none"},
        ],
    )
    assert [status for status, _ in results] == [404, 422, 200, 204]
    assert [results[0][1]["code"], results[1][1]["code"], results[2][1]["status"]] == [
        "session_not_found",
        "limit_too_high",
        "error",
    ]


def test_a_batch_is_bounded_like_any_body(executor: ExecutorProcess, http: httpx.Client) -> None:
    too_many = [{"op": "delete", "session_id": "none"}] * 1001
    assert http.post("/v1/batch", json={"operations": too_many}).json()["code"] == "invalid_request"
    huge = {"op": "execute", "code": "#" * 900_000}
    assert http.post("/v1/batch", json={"operations": [huge] * 10}).json()["code"] == "body_too_large"
    no_json = http.post("/v1/batch", content=b'{"operations": [NaN]}', headers={"Content-Type": "application/json"})
    assert no_json.json()["code"] == "invalid_json"

import json
from base64 import b64encode
from typing import Any

import pytest
from pydantic import ValidationError

from cellar_client import calls
from cellar_client.operation import Operation
from cellar_client.schemas import LimitsRequest


def body(operation: Operation[Any]) -> object:
    return json.loads(operation.request(idempotency_key="k").content)


@pytest.mark.parametrize("limits", [{"memory_mb": 256}, LimitsRequest(memory_mb=256)])
def test_limits_are_given_as_a_dict_or_as_the_schema(limits: calls.AnyLimits) -> None:
    assert body(calls.create_session(limits=limits)) == {"limits": {"memory_mb": 256}}


def test_metadata_keeps_its_nulls() -> None:
    assert body(calls.create_session(metadata={"task": None})) == {"metadata": {"task": None}}


def test_files_travel_as_base64() -> None:
    operation = calls.execute("1", files={"a/b.txt": b"\xff\x00"})
    assert body(operation) == {"code": "1", "files": {"a/b.txt": b64encode(b"\xff\x00").decode()}}


def test_a_run_may_be_silent_for_longer_than_its_cell_takes() -> None:
    assert calls.run("s1", timeout_s=300.0).silence_s == 300.0 + calls.RUN_SILENCE_S
    assert calls.run("s1").silence_s == calls.execute("1").silence_s == calls.RUN_SILENCE_S
    assert calls.cells("s1").silence_s is None


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a?b", "a#b", "a%2fb", "a\nb", "x" * 65])
def test_an_id_cannot_lead_to_another_route(bad: str) -> None:
    with pytest.raises(ValidationError):
        calls.delete_session(bad)
    with pytest.raises(ValidationError):
        calls.withdraw("s1", bad)


@pytest.mark.parametrize("bad", ["", "/etc/passwd", "a//b", "a/", "../s2/files/a", "a/../b", "./a", "a/."])
def test_the_path_of_a_file_cannot_lead_to_another_route(bad: str) -> None:
    for call in (calls.get_file, calls.delete_file):
        with pytest.raises(ValidationError):
            call("s1", bad)
    with pytest.raises(ValidationError):
        calls.put_file("s1", bad, b"")


def test_the_path_of_a_file_is_encoded_whole() -> None:
    assert calls.get_file("s1", "a?b/c#d%2e/\u00e9").path == "/v1/sessions/s1/files/a%3Fb/c%23d%252e/%C3%A9"


def test_a_batch_may_be_as_silent_as_its_most_silent_operation() -> None:
    batch = calls.batch([calls.delete_session("s1"), calls.run("s1", timeout_s=300.0)])
    assert batch.silence_s == 300.0 + calls.RUN_SILENCE_S


@pytest.mark.parametrize("size", [0, calls.BATCH_SIZE + 1])
def test_a_batch_has_a_size(size: int) -> None:
    with pytest.raises(ValidationError):
        calls.batch([calls.run("s1")] * size)


def test_isolation_is_asked_for_by_name() -> None:
    assert body(calls.create_session(isolation="strict")) == {"isolation": "strict"}
    assert body(calls.execute("1", isolation="strict")) == {"code": "1", "isolation": "strict"}


@pytest.mark.parametrize(
    "arguments", [{"limits": {"memory": 1}}, {"limits": {"memory_mb": 1}}, {"seed": -1}, {"recovery": "maybe"}]
)
def test_arguments_outside_the_contract_are_refused_before_anything_is_sent(arguments: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        calls.create_session(**arguments)  # type: ignore[arg-type] # wrong on purpose

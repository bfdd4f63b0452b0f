"""What the operator may say."""

from pathlib import Path

import pytest

from cellar_executor.kernel import DEFAULT_PREIMPORTS, RuntimeConfig
from cellar_executor.settings import is_loopback, parse_api_keys, parse_runtimes, traces_wanted

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("example.org", False), ("127.0.0.1.example.org", False), ("", False)],
)  # fmt: skip
def test_loopback_is_this_machine_only(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_keys_belong_to_tenants() -> None:
    assert parse_api_keys("") == {}
    assert parse_api_keys(f"{KEY}, bob:{KEY}2,") == {KEY: "default", f"{KEY}2": "bob"}


@pytest.mark.parametrize("text", ["short", "bob:short", f"b/ob:{KEY}"])
def test_weak_keys_and_odd_tenants_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"API key"):
        parse_api_keys(text)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    python = tmp_path / "python"
    python.touch()
    return python


def test_runtimes_have_names_and_exist(python: Path) -> None:
    assert parse_runtimes([str(python), f"old={python}"], []) == {
        "python": RuntimeConfig(python),
        "old": RuntimeConfig(python),
    }
    assert list(parse_runtimes([], [])) == ["python"]
    with pytest.raises(ValueError, match="no Python"):
        parse_runtimes(["gone=/nonexistent"], [])


def test_each_runtime_can_have_preimports_of_its_own(python: Path) -> None:
    runtimes = parse_runtimes([str(python), f"a={python}", f"b={python}"], ["a=json, os.path", "b="])
    assert [runtimes[name].preimports for name in ("python", "a", "b")] == [
        DEFAULT_PREIMPORTS,
        ("json", "os.path"),
        (),
    ]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("numpy", "NAME=MODULE"),
        ("other=numpy", "not there: other"),
        ("python=numpy;import os", "not the name"),
        ("python=.numpy", "not the name"),
    ],
)
def test_preimports_that_cannot_be_meant_are_refused(python: Path, given: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_runtimes([str(python)], [given])


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "mine"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_traces_are_sent_where_the_standard_variables_ask_for_them(environment: dict[str, str], wanted: bool) -> None:
    assert traces_wanted(environment) is wanted


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_traces_in_a_way_that_is_not_offered_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="only http/protobuf"):
        traces_wanted({"OTEL_TRACES_EXPORTER": "otlp", name: "grpc"})
    with pytest.raises(ValueError, match="only otlp and none"):
        traces_wanted({"OTEL_TRACES_EXPORTER": "jaeger"})

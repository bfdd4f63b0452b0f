"""Limits go downwards only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_client.schemas import CreateSession, LimitsRequest, Tier
from cellar_executor.admission import (
    AnyTier,
    decode_files,
    isolation_now,
    isolation_within,
    limits_within,
    session_config,
    timeout_within,
)
from cellar_executor.errors import Refusal
from cellar_executor.ids import Ids
from tests.unit.executor.conftest import LIMITS


@given(st.builds(LimitsRequest, memory_mb=st.none() | st.integers(32, 512), processes=st.none() | st.integers(1, 32)))
def test_limits_are_lowered_as_asked_or_refused(asked: LimitsRequest) -> None:
    too_high = (asked.memory_mb or 0) > LIMITS.memory_mb or (asked.processes or 0) > LIMITS.processes
    if too_high:
        with pytest.raises(Refusal, match="limit_too_high"):
            limits_within(LIMITS, asked)
    else:
        limits = limits_within(LIMITS, asked)
        assert limits.memory_mb == (asked.memory_mb or LIMITS.memory_mb)
        assert limits.processes == (asked.processes or LIMITS.processes)
        assert limits.disk_mb == LIMITS.disk_mb


def test_a_timeout_is_the_sessions_or_lower() -> None:
    assert timeout_within(LIMITS, None) == LIMITS.cell_timeout_s
    assert timeout_within(LIMITS, 1.5) == 1.5
    with pytest.raises(Refusal, match="limit_too_high"):
        timeout_within(LIMITS, LIMITS.cell_timeout_s + 1)


@pytest.mark.parametrize(
    ("server", "asked", "given"),
    [
        ("warm", None, "warm"),
        ("warm", "warm", "warm"),
        ("warm", "strict", "strict"),
        ("strict", None, "strict"),
        ("strict", "strict", "strict"),
        ("strict", "warm", None),
        ("none", None, "none"),
        ("none", "warm", None),
        ("none", "strict", None),
    ],
)
def test_isolation_goes_upwards_only(server: AnyTier, asked: Tier | None, given: AnyTier | None) -> None:
    if given is None:
        with pytest.raises(Refusal, match="isolation_unavailable"):
            isolation_within(server, asked)
    else:
        assert isolation_within(server, asked) == given


@pytest.mark.parametrize(
    ("server", "promised", "given"),
    [
        ("warm", "strict", "strict"),
        ("strict", "warm", "strict"),
        ("warm", "none", "warm"),
        ("none", "none", "none"),
        ("none", "warm", None),
    ],
)
def test_a_session_keeps_its_isolation_on_another_server(
    server: AnyTier, promised: AnyTier, given: AnyTier | None
) -> None:
    if given is None:
        with pytest.raises(Refusal, match="isolation_unavailable"):
            isolation_now(server, promised)
    else:
        assert isolation_now(server, promised) == given


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"session_id": Ids.fresh().session()}, "invalid_request"),
        ({"metadata": {"x": float("inf")}}, "invalid_request"),
        ({"metadata": {"x": "y" * 20_000}}, "invalid_request"),
        ({"runtime": "cobol"}, "unknown_runtime"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, object], code: str) -> None:
    with pytest.raises(Refusal, match=code):
        session_config(CreateSession.model_validate(asked), LIMITS, "warm", {"python"}, 60)


def test_files_are_base64() -> None:
    assert decode_files({"f": "aGk=", "empty": ""}) == {"f": b"hi", "empty": b""}
    for bad in ("a", "aGk=!", "é"):
        with pytest.raises(Refusal, match="invalid_request"):
            decode_files({"f": bad})

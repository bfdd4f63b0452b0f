import resource

import pytest

from cellar_executor.kernels import descriptors

Limits = dict[str, tuple[int, int]]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    limits = {"now": (1024, 20_000)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, wanted: limits.update(now=wanted))
    return limits


def test_the_limit_is_raised_as_far_as_it_may(limits: Limits) -> None:
    descriptors.reserve(1000)
    assert limits["now"] == (20_000, 20_000)


def test_more_sessions_than_there_is_room_for_are_refused_with_what_mends_it(limits: Limits) -> None:
    with pytest.raises(ValueError, match=r"ulimit -n 41024.* at most 2372 "):
        descriptors.reserve(5000)
    assert limits["now"] == (1024, 20_000)


def test_without_a_limit_any_number_will_do(limits: Limits) -> None:
    limits["now"] = (1024, resource.RLIM_INFINITY)
    descriptors.reserve(10**6)

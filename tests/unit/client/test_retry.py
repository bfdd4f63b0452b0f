from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cellar_client.errors import (
    BY_CODE,
    CellarError,
    ConnectionFailed,
    InvalidReply,
    OwnerUnavailable,
    RequestInProgress,
    RequestTimeout,
    TransportError,
    from_problem,
)
from cellar_client.retry import NO_RETRIES, Retries, Tries, backoff_s, verdict
from cellar_client.schemas import ErrorCode, Problem

RETRIED_CODES = {
    "request_in_progress",
    "too_many_sessions",
    "quota_exceeded",
    "internal_error",
    "store_unavailable",
    "kernel_unavailable",
    "owner_unavailable",
    "shutting_down",
}


def refused(code: str, retry_after_s: float | None = None) -> CellarError:
    return from_problem(Problem(title="no", status=500, code=code, retry_after_s=retry_after_s))


retry_policies = st.builds(
    Retries,
    attempts=st.integers(1, 8),
    failing_s=st.floats(0, 120),
    in_progress_s=st.floats(0, 120),
    first_pause_s=st.floats(0.001, 1),
    longest_pause_s=st.floats(1, 30),
)
waits_s = st.none() | st.floats(0, 40)
failures = st.one_of(
    st.builds(ConnectionFailed),
    st.builds(RequestTimeout),
    st.builds(refused, st.sampled_from(sorted(RETRIED_CODES - {"request_in_progress", "owner_unavailable"})), waits_s),
)
in_progress = st.builds(refused, st.just("request_in_progress"), waits_s)
moving = st.builds(refused, st.just("owner_unavailable"), waits_s)
histories = st.lists(
    st.tuples(failures | moving | in_progress, st.floats(0, 10), st.floats(0, 1, exclude_max=True)), max_size=60
)


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_only_the_listed_refusals_are_tried_again(code: str) -> None:
    assert (verdict(refused(code)) != "final") == (code in RETRIED_CODES)


@given(st.sampled_from([code for code in BY_CODE if code not in RETRIED_CODES]), retry_policies, waits_s)
def test_any_other_refusal_is_final_whatever_the_policy(code: str, retries: Retries, wait_s: float | None) -> None:
    assert Tries(retries).after(refused(code, wait_s), now_s=0.0, jitter=0.5) is None


def test_of_the_missing_answers_only_an_invalid_one_is_final() -> None:
    kinds = {kind: verdict(kind("")) for kind in TransportError.__subclasses__()}
    assert kinds == {ConnectionFailed: "failed", RequestTimeout: "failed", InvalidReply: "final"}


@given(retry_policies, histories)
def test_all_waiting_together_is_bounded(retries: Retries, history: list[tuple[CellarError, float, float]]) -> None:
    tries, now_s, in_a_row = Tries(retries), 0.0, 0
    failing_since_s: float | None = None
    in_progress_since_s: float | None = None
    for error, answered_after_s, jitter in history:
        now_s += answered_after_s
        if isinstance(error, RequestInProgress):
            in_a_row, failing_since_s = 0, None
            in_progress_since_s = now_s if in_progress_since_s is None else in_progress_since_s
        else:
            in_a_row += not isinstance(error, OwnerUnavailable)
            failing_since_s = now_s if failing_since_s is None else failing_since_s
        following = tries.after(error, now_s=now_s, jitter=jitter)
        if following is None:
            return
        tries = following
        now_s += tries.pause_s
        assert in_a_row < retries.attempts or in_a_row == 0
        if in_progress_since_s is not None and failing_since_s is None:
            assert now_s <= in_progress_since_s + retries.in_progress_s
        if failing_since_s is not None:
            assert now_s <= failing_since_s + retries.failing_s


@example(Retries(), refused("request_in_progress", 3.0), 0.0)
@example(Retries(), refused("too_many_sessions", 3.0), 0.0)
@given(retry_policies, failures | moving | in_progress, st.floats(0, 1, exclude_max=True))
def test_a_pause_is_never_shorter_than_the_server_asked(retries: Retries, error: CellarError, jitter: float) -> None:
    following = Tries(retries).after(error, now_s=0.0, jitter=jitter)
    asked_s = getattr(error, "problem", Problem(title="", status=0, code="")).retry_after_s or 0.0
    assert following is None or following.pause_s >= asked_s


@given(retry_policies, st.integers(1, 30))
def test_backoff_doubles_up_to_the_longest_pause(retries: Retries, count: int) -> None:
    now_s, then_s = backoff_s(retries, count), backoff_s(retries, count + 1)
    assert retries.first_pause_s <= now_s <= then_s <= retries.longest_pause_s
    assert then_s == pytest.approx(min(2 * now_s, retries.longest_pause_s))


def test_an_answer_in_progress_ends_a_row_of_failures() -> None:
    tries: Tries | None = Tries(Retries(attempts=3))
    for error in [ConnectionFailed(), ConnectionFailed(), refused("request_in_progress")] * 3:
        assert tries is not None
        tries = tries.after(error, now_s=1.0, jitter=0.0)
    assert tries is not None


def test_another_server_need_not_be_waited_for() -> None:
    following = Tries(Retries()).after(refused("shutting_down", 5.0), now_s=0.0, jitter=0.0, elsewhere=True)
    assert following is not None
    assert following.pause_s == 0.0


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_session_that_moves_is_waited_for_as_long_as_failures_may_last(elsewhere: bool) -> None:
    """Many more tries than there are attempts: a lease is longer than those take."""
    tries: Tries | None = Tries(Retries(attempts=2, failing_s=20.0))
    now_s = 0.0
    for error in [ConnectionFailed(), *[refused("owner_unavailable", 1.0)] * 19]:
        assert tries is not None
        tries = tries.after(error, now_s=now_s, jitter=0.0, elsewhere=elsewhere)
        now_s += 1.0
    assert tries is not None
    assert tries.pause_s == 1.0
    assert tries.after(refused("owner_unavailable", 1.0), now_s=now_s, jitter=0.0) is None


@pytest.mark.parametrize(
    "error",
    [ConnectionFailed(), refused("request_in_progress"), refused("shutting_down"), refused("owner_unavailable")],
)
def test_a_client_without_retries_never_tries_again(error: CellarError) -> None:
    assert Tries(NO_RETRIES).after(error, now_s=0.0, jitter=0.0) is None

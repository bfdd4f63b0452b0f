import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_client import servers
from cellar_client.errors import (
    CellarError,
    ConnectionFailed,
    RequestTimeout,
    SessionLost,
    from_problem,
)
from cellar_client.schemas import Cell, Problem, Session
from cellar_client.servers import LEFT_OUT_S, Route, Servers
from tests.unit.client.fake_server import session


def refused(code: str) -> CellarError:
    return from_problem(Problem(title="no", status=503, code=code))


def three() -> Servers[str]:
    return Servers(["a", "b", "c"])


def created(session_id: str) -> Session:
    return Session.model_validate(session(session_id))


def first(known: Servers[str], session_id: str | None = None, now_s: float = 0.0) -> str:
    return known.route(session_id, now_s=now_s).server


def way(route: Route[str], *errors: CellarError, now_s: float = 0.0) -> list[tuple[str, bool]]:
    """Where the route leads after each error, and whether it has not been there yet."""
    return [(route.server, fresh) for fresh in (route.refuse(error, now_s=now_s) for error in errors)]


# What can go on elsewhere, and what leaves its server out.
MOVING = [
    ConnectionFailed(),
    RequestTimeout(),
    *map(refused, ("owner_unavailable", "shutting_down", "too_many_sessions", "store_unavailable")),
]
STAYING = [
    refused("request_in_progress"),
    refused("quota_exceeded"),
    refused("session_lost"),
    refused("too_many_cells"),
]
LEAVING_OUT = [ConnectionFailed(), refused("shutting_down"), refused("store_unavailable")]


def test_no_server_is_refused() -> None:
    with pytest.raises(ValueError, match="no server"):
        Servers([])


def test_operations_about_no_session_go_round() -> None:
    known = three()
    assert [first(known) for _ in range(5)] == ["a", "b", "c", "a", "b"]


def test_a_session_stays_with_the_server_that_created_it() -> None:
    known = three()
    first(known)
    known.route(None, now_s=0.0).answered(created("s1"))
    assert [first(known, "s1") for _ in range(3)] == ["b"] * 3


def test_forks_and_sessions_of_a_batch_stay_with_the_server_that_made_them() -> None:
    known = three()
    known.route(None, now_s=0.0).answered([created("s1"), Cell(cell_id="c", index=0, status="ok"), created("s2")])
    assert [first(known, name) for name in ("s2", "s1")] == ["a", "a"]


def test_a_session_that_another_server_answered_for_stays_there() -> None:
    known = three()
    known.route(None, now_s=0.0).answered(created("s1"))
    route = known.route("s1", now_s=0.0)
    assert way(route, refused("owner_unavailable")) == [("b", True)]
    route.answered(None)
    assert first(known, "s1") == "b"


@pytest.mark.parametrize("error", MOVING, ids=str)
def test_the_next_try_goes_to_the_next_server(error: CellarError) -> None:
    assert way(three().route(None, now_s=0.0), error) == [("b", True)]


@pytest.mark.parametrize("error", STAYING, ids=str)
def test_what_no_other_server_changes_stays(error: CellarError) -> None:
    assert way(three().route(None, now_s=0.0), error) == [("a", False)]


def test_after_all_have_refused_it_goes_round_again_without_haste() -> None:
    full = refused("too_many_sessions")
    assert way(three().route(None, now_s=0.0), *[full] * 4) == [("b", True), ("c", True), ("a", False), ("b", True)]


@pytest.mark.parametrize("error", LEAVING_OUT, ids=str)
def test_a_server_that_can_answer_nobody_is_left_out_for_a_while(error: CellarError) -> None:
    known = three()
    known.route(None, now_s=0.0).answered(created("s1"))
    way(known.route("s1", now_s=0.0), error)
    assert {first(known, "s1") for _ in range(9)} == {"b", "c"}
    assert first(known, "s1", now_s=LEFT_OUT_S) == "a"


def test_a_full_server_still_answers_for_its_sessions() -> None:
    known = three()
    known.route(None, now_s=0.0).answered(created("s1"))
    way(Route(known, None, 0), refused("too_many_sessions"))
    assert first(known, "s1") == "a"


def test_when_all_are_left_out_the_first_to_come_back_is_asked() -> None:
    known = three()
    for index, now_s in ((1, 0.0), (2, 1.0), (0, 2.0)):
        way(Route(known, None, index), ConnectionFailed(), now_s=now_s)
    assert {first(known, now_s=3.0) for _ in range(5)} == {"b"}


def test_no_more_sessions_are_remembered_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "HOMES", 2)
    known = three()
    for name in ("s1", "s2", "s1", "s3"):
        Route(known, name, 2).answered(None)
    assert [first(known, name) for name in ("s1", "s3", "s2")] == ["c", "c", "a"]


@given(st.lists(st.sampled_from([*MOVING, *STAYING, SessionLost(Problem(title="", status=410, code="session_lost"))])))
def test_one_server_is_always_the_one(errors: list[CellarError]) -> None:
    route = Servers(["only"]).route("s1", now_s=0.0)
    assert way(route, *errors) == [("only", False)] * len(errors)
    route.answered(created("s1"))


@given(
    count=st.integers(2, 5),
    steps=st.lists(st.tuples(st.sampled_from(MOVING), st.floats(0, 10)), max_size=40),
)
def test_every_server_is_tried_before_any_is_tried_twice(count: int, steps: list[tuple[CellarError, float]]) -> None:
    """A fresh server is neither left out nor one that has refused; only when there is none it starts anew."""
    known = Servers(range(count))
    route, now_s, been = known.route(None, now_s=0.0), 0.0, set[int]()
    for error, later_s in steps:
        now_s += later_s
        been.add(route.server)
        if route.refuse(error, now_s=now_s):
            assert route.server not in been
        else:
            been.clear()
    assert route.server in range(count)

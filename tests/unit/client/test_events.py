"""Streams of events, read from bytes, continued over connections; and handles of runs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_client.errors import ConnectionFailed, InvalidReply, SessionLost, StoreUnavailable
from cellar_client.events import EventReader
from cellar_client.retry import NO_RETRIES
from cellar_client.schemas import Cell, CellOutput, CellStarted, Run, RunAccepted, RunEvent
from tests.unit.client.fake_server import QUICK, RUN, FakeServer, cell, events, ok, problem

ACCEPTED = ("run", {"run_id": "r1"})
OUTPUT = ("output", {"cell_id": "c1", "stream": "stdout", "text": "a\n\n\N{EURO SIGN}: b"})
DONE = ("done", RUN)
WHOLE = [ACCEPTED, ("cell_started", {"cell_id": "c1", "index": 0}), OUTPUT, ("cell", cell("c1", "ok")), DONE]
IN_PROGRESS = problem(409, "request_in_progress")


@given(cuts=st.lists(st.integers(min_value=0, max_value=2000), max_size=20))
def test_events_are_read_however_the_bytes_are_cut(cuts: list[int]) -> None:
    data = events(*WHOLE[:3], ("of a newer server", {"x": 1}), *WHOLE[3:]).content
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    reader, told = EventReader(), list[RunEvent]()
    for start, end in zip(places, places[1:], strict=False):
        told += reader.feed(data[start:end])
    assert [type(event) for event in told] == [RunAccepted, CellStarted, CellOutput, Cell, Run]
    assert told[2] == CellOutput.model_validate(OUTPUT[1])


def test_an_error_is_raised_as_its_own_reply_would_be() -> None:
    reader = EventReader()
    body = json.loads(problem(410, "session_lost").content)
    with pytest.raises(SessionLost):
        list(reader.feed(events(ACCEPTED, ("error", body)).content))


async def test_a_stream_that_breaks_is_continued_with_the_same_key_and_tells_nothing_twice() -> None:
    server = FakeServer(
        events(*WHOLE[:3]),
        ConnectionFailed("cut"),
        IN_PROGRESS,
        problem(503, "owner_unavailable"),
        events(ACCEPTED, DONE),
    )
    session = server.async_cellar(QUICK).attach("s1")
    told = [event async for event in session.stream_run("x")]
    assert [type(event) for event in told] == [RunAccepted, CellStarted, CellOutput, Run]
    assert server.asked == ["POST /v1/sessions/s1/run?stream=true"] * 5
    assert len(set(server.keys)) == 1
    again = FakeServer(events(*WHOLE[:3]), ConnectionFailed("cut"), IN_PROGRESS, events(ACCEPTED, DONE))
    assert list(again.cellar(QUICK).attach("s1").stream_run("x")) == told


def test_what_no_retry_helps_is_raised() -> None:
    body = json.loads(problem(503, "store_unavailable").content)
    for reply, error in (
        (problem(410, "session_lost"), SessionLost),
        (events(ACCEPTED), ConnectionFailed),
        (events(ACCEPTED, ("error", body)), StoreUnavailable),
        (events(("done", {"run_id": 1})), InvalidReply),
    ):
        with pytest.raises(error):
            list(FakeServer(reply).cellar(NO_RETRIES).attach("s1").stream_run("x"))


async def test_a_run_is_accepted_and_then_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellar_client.calls.POLL_PAUSE_S", 0.0)
    replies = (ok({"run_id": "r1"}, 202), ok({"run_id": "r1"}, 202), ok(RUN))
    server = FakeServer(*replies)
    handle = await server.async_cellar().attach("s1").run_async("x", timeout_s=1)
    assert (handle.run_id, (await handle.wait()).status) == ("r1", "ok")
    assert server.requests[0].headers["Prefer"] == "respond-async"
    assert server.asked[1:] == ["GET /v1/sessions/s1/runs/r1?wait_s=30.0"] * 2
    assert FakeServer(*replies).cellar().attach("s1").run_async("x").wait().run_id == "r1"


async def test_the_wait_for_a_run_can_be_bounded() -> None:
    server = FakeServer(*[ok({"run_id": "r1"}, 202)] * 3)
    with pytest.raises(TimeoutError):
        await (await server.async_cellar().attach("s1").run_async("x")).wait(0)
    with pytest.raises(TimeoutError):
        FakeServer(*[ok({"run_id": "r1"}, 202)] * 2).cellar().attach("s1").run_async("x").wait(0)

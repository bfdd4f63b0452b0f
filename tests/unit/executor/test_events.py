"""Events of a run for a reader of any speed, and how they go over the wire."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_client.schemas import Cell, CellOutput, CellStarted, Problem, Run, RunAccepted, RunEvent
from cellar_executor.errors import Refusal
from cellar_executor.events import EVENT_CHARS, MAX_WAITING_CHARS, RunEvents
from cellar_executor.http import streams
from cellar_executor.idempotency import Answer
from cellar_executor.kernel import OutputName

RUN = Run(run_id="r", session_id="s", generation=1, status="ok", cells=[], duration_s=0.0, queue_s=0.0)
CELL = Cell(cell_id="c", index=0, status="ok")


async def read(events: RunEvents) -> list[RunEvent]:
    events.end()
    told = []
    while (event := await events.next()) is not None:
        told.append(event)
    return told


@given(
    writes=st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(min_size=1, max_size=9)), max_size=40),
    reads=st.sets(st.integers(min_value=0, max_value=40)),
)
def test_each_stream_is_told_whole_and_in_order(writes: list[tuple[OutputName, str]], reads: set[int]) -> None:
    async def told() -> list[RunEvent]:
        events, told = RunEvents(), list[RunEvent]()
        for number, (stream, text) in enumerate(writes):
            events.output("c", stream, text)
            if number in reads and (event := await events.next()) is not None:
                told.append(event)
        return told + await read(events)

    outputs = [event for event in asyncio.run(told()) if isinstance(event, CellOutput)]
    for name in ("stdout", "stderr"):
        assert "".join(e.text for e in outputs if e.stream == name) == "".join(t for s, t in writes if s == name)
    assert not any(event.dropped for event in outputs)


async def test_what_a_slow_reader_leaves_is_bounded_and_it_is_told_of_the_gap() -> None:
    events = RunEvents()
    events.run("r")
    events.run("r")
    events.cell_started("c", 0)
    for _ in range(10):
        events.output("c", "stdout", "x" * (MAX_WAITING_CHARS // 4))
    assert [await events.next(), await events.next()] == [RunAccepted(run_id="r"), CellStarted(cell_id="c", index=0)]
    first = await events.next()
    assert isinstance(first, CellOutput)
    assert not first.dropped
    assert len(first.text) == 3 * (MAX_WAITING_CHARS // 4)
    events.output("c", "stderr", "e")
    events.output("c", "stdout", "after")
    events.cell(CELL)
    assert await read(events) == [
        CellOutput(cell_id="c", stream="stderr", text="e"),
        CellOutput(cell_id="c", stream="stdout", text="after", dropped=True),
        CELL,
    ]


async def test_many_small_outputs_are_bounded_as_well() -> None:
    events = RunEvents()
    for _ in range(MAX_WAITING_CHARS):
        events.output("c", "stdout", "o")
        events.output("c", "stderr", "e")
    assert len(await read(events)) <= MAX_WAITING_CHARS // EVENT_CHARS


async def test_nothing_is_kept_for_nobody() -> None:
    events = RunEvents()
    events.end()
    events.cell(CELL)
    events.output("c", "stdout", "x")
    assert await events.next() is None


async def streamed(run: asyncio.Task[Answer], events: RunEvents) -> str:
    await streams.begun(run, events)
    return b"".join([chunk async for chunk in streams.encoded(run, events)]).decode()


async def test_a_stream_ends_with_the_answer_and_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.01)
    events = RunEvents()

    async def run() -> Answer:
        events.run("r")
        events.cell(CELL)
        await asyncio.sleep(0.05)
        return Answer(200, RUN.model_dump_json())

    text = await streamed(asyncio.create_task(run()), events)
    blocks = [block for block in text.split("\n\n") if block]
    assert blocks[:2] == ['event: run\ndata: {"run_id":"r"}', f"event: cell\ndata: {CELL.model_dump_json()}"]
    assert set(blocks[2:-1]) == {": still here"}
    assert blocks[-1] == f"event: done\ndata: {RUN.model_dump_json()}"


async def test_what_was_done_before_is_run_and_done() -> None:
    async def run() -> Answer:
        return Answer(200, RUN.model_dump_json(), replayed=True)

    text = await streamed(asyncio.create_task(run()), RunEvents())
    assert [line for line in text.split("\n") if line.startswith("event")] == ["event: run", "event: done"]


async def test_a_refusal_is_raised_before_the_first_event_and_told_after_it() -> None:
    events = RunEvents()

    async def refused(error: Exception, *, late: bool) -> Answer:
        if late:
            events.run("r")
        raise error

    with pytest.raises(Refusal, match="session_lost"):
        await streamed(asyncio.create_task(refused(Refusal("session_lost"), late=False)), RunEvents())
    for error, code in ((Refusal("session_lost"), "session_lost"), (ZeroDivisionError(), "internal_error")):
        events = RunEvents()
        text = await streamed(asyncio.create_task(refused(error, late=True)), events)
        name, data = text.strip().split("\n\n")[-1].split("\n")
        assert name == "event: error"
        assert Problem.model_validate(json.loads(data.removeprefix("data: "))).code == code

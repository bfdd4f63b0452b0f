"""`POST .../run?stream=true`: the events of a run as server-sent events.

    event: run            data: {"run_id"}
    event: cell_started   data: {"cell_id", "index"}
    event: output         data: {"cell_id", "stream", "text", "dropped"}
    event: cell           data: the Cell, finished
    event: done           data: the Run; the last event
    event: error          data: the Problem; the last event, in the place of `done`

What was done before, under the same idempotency key, is `run` and `done` alone. While nothing happens there is a
comment every 15 s.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cellar_client.schemas import Cell, CellOutput, CellStarted, Problem, Run, RunAccepted, RunEvent
from cellar_executor.errors import Refusal, problem_of
from cellar_executor.events import RunEvents
from cellar_executor.idempotency import Answer
from cellar_executor.presence import Presence

HEARTBEAT_S = 15.0
HEARTBEAT = b": still here\n\n"
NAMES: dict[type[RunEvent | Problem], str] = {
    RunAccepted: "run",
    CellStarted: "cell_started",
    CellOutput: "output",
    Cell: "cell",
    Run: "done",
    Problem: "error",
}

log = logging.getLogger(__name__)


class RunStream(StreamingResponse):
    """Ends with the run, or when nobody reads any more; `presence` hears of that."""

    def __init__(self, run: asyncio.Task[Answer], events: RunEvents, presence: Presence | None) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(encoded(run, events), headers=headers, media_type="text/event-stream")
        self._events = events
        self._presence = presence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._events.end()
            if self._presence is not None:
                self._presence.leave()


async def begun(run: asyncio.Task[Answer], events: RunEvents) -> None:
    """Wait until there is something to tell. Raises what the run is refused with before that."""
    run.add_done_callback(lambda _: events.end())
    await events.some()
    if run.done() and not events.any:
        run.result()


async def encoded(run: asyncio.Task[Answer], events: RunEvents) -> AsyncIterator[bytes]:
    """All events of a run, and its answer as the last one."""
    told = False
    while True:
        try:
            event = await asyncio.wait_for(events.next(), HEARTBEAT_S)
        except TimeoutError:
            yield HEARTBEAT
            continue
        if event is None:
            break
        told = True
        yield encode(event)
    last = _last(run)
    if isinstance(last, Run) and not told:
        yield encode(RunAccepted(run_id=last.run_id))
    yield encode(last)


def encode(event: RunEvent | Problem) -> bytes:
    return f"event: {NAMES[type(event)]}\ndata: {event.model_dump_json()}\n\n".encode()


def _last(run: asyncio.Task[Answer]) -> Run | Problem:
    if run.cancelled():
        return problem_of(Refusal("shutting_down"))
    error = run.exception()
    if error is None:
        return Run.model_validate_json(run.result().body)
    if not isinstance(error, Refusal):
        log.error("a streamed run failed", exc_info=error)
        error = Refusal("internal_error")
    return problem_of(error)

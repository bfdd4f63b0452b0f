"""What happens in a run while it happens, for one reader that may be slow, or gone.

Whoever writes here never waits. What has not been read is bounded: output that finds no room is dropped, and the next
output of the same stream says so (`dropped`). The other events are as few as the cells, and always come.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from cellar_client.schemas import Cell, CellOutput, CellStarted, RunAccepted, RunEvent
from cellar_executor.kernel import OutputName

MAX_WAITING_CHARS = 256 << 10
EVENT_CHARS = 256
"""What an output counts beside its text, so that many small ones are bounded as well."""


@dataclass(slots=True)
class _Text:
    """Output that waits; what follows it before it is read becomes part of it."""

    cell_id: str
    stream: OutputName
    dropped: bool
    parts: list[str] = field(default_factory=list)
    cost: int = 0

    def event(self) -> CellOutput:
        return CellOutput(cell_id=self.cell_id, stream=self.stream, text="".join(self.parts), dropped=self.dropped)


class RunEvents:
    def __init__(self) -> None:
        self._waiting: deque[RunEvent | _Text] = deque()
        self._chars = 0
        self._dropped: set[OutputName] = set()
        self._news = asyncio.Event()
        self._ended = False
        self._accepted = False

    def run(self, run_id: str) -> None:
        """The run is accepted, or begun; it is told once."""
        if not self._accepted:
            self._accepted = True
            self._put(RunAccepted(run_id=run_id))

    def cell_started(self, cell_id: str, index: int) -> None:
        self._dropped.clear()
        self._put(CellStarted(cell_id=cell_id, index=index))

    def output(self, cell_id: str, stream: OutputName, text: str) -> None:
        waiting = self._text_to_join(cell_id, stream)
        cost = len(text) + (EVENT_CHARS if waiting is None else 0)
        if self._ended or self._chars + cost > MAX_WAITING_CHARS:
            self._dropped.add(stream)
            return
        if waiting is None:
            waiting = _Text(cell_id, stream, dropped=stream in self._dropped)
            self._dropped.discard(stream)
            self._put(waiting)
        waiting.parts.append(text)
        waiting.cost += cost
        self._chars += cost

    def cell(self, cell: Cell) -> None:
        self._put(cell)

    def end(self) -> None:
        """Nothing follows, or nobody reads any more."""
        self._ended = True
        self._news.set()

    @property
    def any(self) -> bool:
        return bool(self._waiting)

    async def some(self) -> None:
        """Wait until there is one, or there will be none."""
        while not self._waiting and not self._ended:
            self._news.clear()
            await self._news.wait()

    async def next(self) -> RunEvent | None:
        """The next event; None when there is none and the run has ended."""
        await self.some()
        if not self._waiting:
            return None
        event = self._waiting.popleft()
        if isinstance(event, _Text):
            self._chars -= event.cost
            return event.event()
        return event

    def _text_to_join(self, cell_id: str, stream: OutputName) -> _Text | None:
        last = self._waiting[-1] if self._waiting else None
        if not isinstance(last, _Text) or (last.cell_id, last.stream) != (cell_id, stream) or stream in self._dropped:
            return None
        return last

    def _put(self, event: RunEvent | _Text) -> None:
        if not self._ended:
            self._waiting.append(event)
            self._news.set()

"""Server-sent events of a run, from bytes to models. Pure: the transports bring the bytes."""

from collections.abc import Iterator

from pydantic import BaseModel

from cellar_client.errors import from_problem
from cellar_client.schemas import Cell, CellOutput, CellStarted, Problem, Run, RunAccepted, RunEvent

MODELS: dict[str, type[BaseModel]] = {
    "run": RunAccepted,
    "cell_started": CellStarted,
    "output": CellOutput,
    "cell": Cell,
    "done": Run,
    "error": Problem,
}


class EventReader:
    """Takes the bytes of one stream as they come. Comments, and events that only a newer server knows, are left out."""

    def __init__(self) -> None:
        self._unread = b""

    def feed(self, data: bytes) -> Iterator[RunEvent]:
        """The events that are whole now. Raises the `ServerError` in an `error`; `ValueError` for what is no event."""
        *blocks, self._unread = (self._unread + data).split(b"\n\n")
        for block in blocks:
            event = _event(block.decode())
            if isinstance(event, Problem):
                raise from_problem(event)
            if event is not None:
                yield event


class Continued:
    """One run told over several connections: what was told is not told again."""

    def __init__(self) -> None:
        self._told = False

    def new(self, event: RunEvent) -> bool:
        first_again = isinstance(event, RunAccepted) and self._told
        self._told |= isinstance(event, RunAccepted)
        return not first_again


def _event(block: str) -> RunEvent | Problem | None:
    fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
    model = MODELS.get(fields.get("event", ""))
    return None if model is None else model.model_validate_json(fields.get("data", ""))  # type: ignore[return-value]

"""Clients that run cells one after the other, each in a session of its own, and what they saw."""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.executor.cellar import CellarSession, CellarSide

CELL = "print(1)"


@dataclass(frozen=True, slots=True)
class Seen:
    cells: int
    seconds: float
    median_ms: float

    @property
    def per_second(self) -> float:
        return self.cells / self.seconds


def load(sessions: Sequence[CellarSession], cells: int) -> Seen:
    """`cells` of each session; all sessions at once."""
    with ThreadPoolExecutor(len(sessions)) as clients:
        list(clients.map(CellarSession.run, sessions, [CELL] * len(sessions)))
        start = time.perf_counter()
        took = [ms for of_session in clients.map(_run, sessions, [cells] * len(sessions)) for ms in of_session]
        seconds = time.perf_counter() - start
    return Seen(len(took), seconds, statistics.median(took))


def opened(sides: Sequence[CellarSide], count: int) -> list[CellarSession]:
    """Sessions on these servers in turn; each is asked where it was created."""
    return [sides[number % len(sides)].open() for number in range(count)]


def close(sessions: Sequence[CellarSession]) -> None:
    for session in sessions:
        session.close()


def _run(session: CellarSession, cells: int) -> list[float]:
    took = []
    for _ in range(cells):
        start = time.perf_counter()
        session.run(CELL)
        took.append(1e3 * (time.perf_counter() - start))
    return took

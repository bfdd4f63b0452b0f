"""A thousand live sessions, and what a cell in one of them takes."""

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from benchmarks.executor.cellar import CellarSession, CellarSide
from benchmarks.executor.report import Results, Row
from benchmarks.executor.sides import Side, Sizes

ALONE = Row("cell in the only session", "ms")
CROWD = Row("cell in a random one of many live sessions", "ms")
SLOWDOWN = Row("the second against the first", "x", 2)


def many_sessions(results: Results, sides: Sequence[Side], sizes: Sizes) -> None:
    side = sides[0]
    if not isinstance(side, CellarSide) or not side.starts_quickly:
        results.note("Many live sessions were not tried: only the warm tier's are small enough.")
        return
    with (
        results.kept(ALONE, side.name),
        results.kept(CROWD, side.name),
        ThreadPoolExecutor(sizes.clients) as clients,
    ):
        only = side.open()
        alone = _measure(results, ALONE, side, [only], sizes.crowd_cells)
        only.close()
        sessions: list[CellarSession] = []
        try:
            start = time.perf_counter()
            sessions.extend(clients.map(lambda _: side.open(), range(sizes.crowd)))
            results.note(f"{len(sessions)} live sessions, started in {time.perf_counter() - start:.1f} s.")
            among = _measure(results, CROWD, side, sessions, sizes.crowd_cells)
            results.add(SLOWDOWN, side.name, among / alone)
        finally:
            with suppress(RuntimeError):
                list(clients.map(CellarSession.close, sessions))


def _measure(results: Results, row: Row, side: CellarSide, sessions: list[CellarSession], cells: int) -> float:
    """The median, in milliseconds."""
    took = []
    for session in random.Random(0).choices(sessions, k=cells):
        start = time.perf_counter()
        session.run("print(1)")
        took.append(1e3 * (time.perf_counter() - start))
        results.add(row, side.name, took[-1])
    return statistics.median(took)

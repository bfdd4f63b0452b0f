"""Cells that are stuck in one session, and what another session notices of them."""

import statistics
import time
from collections.abc import Sequence

from benchmarks.executor.cellar import CellarSession, CellarSide
from benchmarks.executor.report import Results, Row
from benchmarks.executor.sides import OpenSession, Side, Sizes

STUCK = ["while True: pass", "while True: pass", "import time; time.sleep(1000)", "import os; os.read(os.pipe()[0], 1)"]

ALONE = Row("warm cell, p99 of a round", "ms")
BESIDE_WAITING = Row("the same beside 2 cells that wait for ever", "ms")
BESIDE_SPINNING = Row("the same beside 2 that spin and 2 that wait for ever", "ms")


def neighbours(results: Results, sides: Sequence[Side], sizes: Sizes) -> None:
    for side in sides:
        if not isinstance(side, CellarSide):
            continue
        for row, stuck in ((ALONE, []), (BESIDE_WAITING, STUCK[2:]), (BESIDE_SPINNING, STUCK)):
            with results.kept(row, side.name):
                session, others = side.open(), _stuck(side, stuck)
                results.add(row, side.name, _p99_ms(session, sizes.neighbour_cells))
                for opened in (session, *others):
                    opened.close()


def _stuck(side: CellarSide, codes: list[str]) -> list[CellarSession]:
    sessions = [side.open() for _ in codes]
    for session, code in zip(sessions, codes, strict=True):
        session.run_from_now_on(code)
    return sessions


def _p99_ms(session: OpenSession, cells: int) -> float:
    session.run("print(1)")
    took = []
    for _ in range(cells):
        start = time.perf_counter()
        session.run("print(1)")
        took.append(1e3 * (time.perf_counter() - start))
    return statistics.quantiles(took, n=100, method="inclusive")[-1]

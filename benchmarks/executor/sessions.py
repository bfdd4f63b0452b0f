"""How quickly sessions come and go."""

import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.executor.cellar import CellarSide
from benchmarks.executor.report import Results, Row
from benchmarks.executor.sides import LIBRARIES, Side, Sizes

PAUSE_S = 0.02
"""Between two sessions, so that a pool of ready ones is warm: as when somebody thinks between them."""
THREE_CELLS = [LIBRARIES, "x = sympy.Symbol('x'); p = sympy.factor(x**2 - 1)", "print(p, numpy.arange(10).sum())"]

START = Row("session start + first cell with numpy and sympy", "ms", 3)
SESSIONS = Row("sessions: start, 3 cells, end", "/s", 100, "more")
BATCHED = Row("sessions in batches: start, 3 cells, end", "/s", None, "more")
EXECUTIONS = Row("one-off executions", "/s", 60, "more")


def first_cell(results: Results, sides: Sequence[Side], sizes: Sizes) -> None:
    for side in sides:
        for _ in range(max(1, sizes.sessions_of(side) // 4)):
            time.sleep(PAUSE_S)
            with results.kept(START, side.name):
                start = time.perf_counter()
                session = side.open()
                session.run(LIBRARIES)
                results.add(START, side.name, 1e3 * (time.perf_counter() - start))
                session.close()


def per_second(results: Results, sides: Sequence[Side], sizes: Sizes) -> None:
    def one(side: Side) -> None:
        session = side.open()
        for code in THREE_CELLS:
            session.run(code)
        session.close()

    _rate(results, SESSIONS, sides, sizes, one)


def executions_per_second(results: Results, sides: Sequence[Side], sizes: Sizes) -> None:
    _rate(results, EXECUTIONS, sides, sizes, lambda side: side.execute("print(1)"))


def batched_per_second(results: Results, sides: Sequence[Side], sizes: Sizes) -> None:
    for side in sides:
        if not isinstance(side, CellarSide):
            continue
        count = sizes.sessions_of(side)
        ids = [f"b-{uuid.uuid4().hex}" for _ in range(count)]
        operations = [{"op": "create", "session_id": i} for i in ids]
        operations += [{"op": "run", "session_id": i, "code": code} for code in THREE_CELLS for i in ids]
        operations += [{"op": "delete", "session_id": i} for i in ids]
        with results.kept(BATCHED, side.name):
            start = time.perf_counter()
            side.batch(operations)
            results.add(BATCHED, side.name, count / (time.perf_counter() - start))


def _rate(results: Results, row: Row, sides: Sequence[Side], sizes: Sizes, one: Callable[[Side], None]) -> None:
    for side in sides:
        count = sizes.sessions_of(side)
        with results.kept(row, side.name), ThreadPoolExecutor(sizes.clients) as clients:
            start = time.perf_counter()
            list(clients.map(one, [side] * count))
            results.add(row, side.name, count / (time.perf_counter() - start))

"""A megabyte of output: it arrives whole, or says that it was cut."""

import time
from collections.abc import Sequence

from benchmarks.executor.cellar import CellarSession
from benchmarks.executor.report import Results, Row
from benchmarks.executor.sides import OpenSession, Side, Sizes

LINES = "for _ in range(10_000): print('x' * 99)"
SIZE = 1_000_000

ROW = Row("1 MB of output, whole or visibly cut", "ms", 50)


def one_megabyte(results: Results, sides: Sequence[Side], sizes: Sizes) -> None:
    for side in sides:
        with results.kept(ROW, side.name):
            session = side.open()
            session.run("print(1)")
            for _ in range(max(1, sizes.slow_sessions // 2)):
                start = time.perf_counter()
                whole = _run(session)
                results.add(ROW, side.name, 1e3 * (time.perf_counter() - start))
                results.note(f"1 MB of output from {side.name}: {'whole' if whole else 'cut, and says so'}.")
            session.close()


def _run(session: OpenSession) -> bool:
    """Whether all of it came; raises when some is missing and nothing says so."""
    if isinstance(session, CellarSession):
        outcome = session.outcome(LINES)
        whole, cut = len(outcome["stdout"]) == SIZE, bool(outcome["truncated"])
    else:
        whole, cut = len(session.run(LINES)) == SIZE, False
    if not whole and not cut:
        raise RuntimeError("output is missing and nothing says so")
    return whole

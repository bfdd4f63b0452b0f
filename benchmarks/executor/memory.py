"""What an idle session with numpy and sympy holds, beyond what is there without it."""

import time
from collections.abc import Sequence

from benchmarks.executor.report import Results, Row
from benchmarks.executor.sides import LIBRARIES, Side, Sizes
from benchmarks.executor.system import memory_available_bytes, pss_bytes

SETTLE_S = 1.0
PSS = Row("idle session, PSS of its processes", "MB", 3)
HOST = Row("idle session, fall of MemAvailable", "MB")


def idle_session(results: Results, sides: Sequence[Side], sizes: Sizes) -> None:
    for side in sides:
        count = sizes.idle_sessions if side.starts_quickly else sizes.slow_sessions
        with results.kept(PSS, side.name):
            time.sleep(SETTLE_S)
            pss, available = pss_bytes(side.pids()), memory_available_bytes()
            sessions = [side.open() for _ in range(count)]
            for session in sessions:
                session.run(LIBRARIES)
            time.sleep(SETTLE_S)
            results.add(PSS, side.name, (pss_bytes(side.pids()) - pss) / count / 1e6)
            results.add(HOST, side.name, (available - memory_available_bytes()) / count / 1e6)
            for session in sessions:
                session.close()

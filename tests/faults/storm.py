"""Writers and a nemesis at once, and the verdict."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.checker import Violation, check
from tests.faults.client import Witness, code_of
from tests.faults.cluster import Cluster, nothing_left
from tests.faults.history import History
from tests.faults.nemesis import Nemesis
from tests.faults.writers import Writers

SAY_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    history: History
    violations: list[Violation]
    sessions: int
    kills: int
    faults: Counter[str]
    seconds: float


def storm(
    folder: Path,
    *,
    kills: int,
    at_most_s: float,
    writers: int,
    seed: int,
    isolated: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Until so many servers and Redis processes were killed, or so long; then all is healed and brought to an end."""
    history, begun = History(), time.monotonic()
    with (
        nothing_left() as left,
        Cluster(folder, isolated=isolated) as cluster,
        Witness(cluster.urls, history, seed) as witness,
    ):
        work = Writers(witness, None if isolated else cluster.folder("effects"), writers, seed)
        try:
            with Nemesis(cluster, history, seed) as nemesis:
                while cluster.kills < kills and time.monotonic() < begun + at_most_s:
                    time.sleep(min(SAY_EVERY_S, at_most_s))
                    say(f"{time.monotonic() - begun:4.0f} s: {cluster.kills} kills, {len(history.calls)} requests")
        finally:
            work.stop()
        for session in sorted({call.session for call in history.calls}):
            witness.surely("delete", session, "DELETE", f"/{session}")
        history.leftovers += cluster.excess()
    history.leftovers += [f"left at the end: {process}" for process in left]
    violations = [*check(history), *(Violation("I6", "", f"no definite answer: {call}") for call in work.gave_up)]
    return Outcome(history, violations, work.sessions, cluster.kills, nemesis.done, time.monotonic() - begun)


def table(outcome: Outcome) -> str:
    calls = outcome.history.calls
    runs = {call.body["run_id"]: call.body for call in calls if call.what == "run" and call.status == 200}
    cells = Counter(cell["status"] for run in runs.values() for cell in run["cells"])
    rows = {
        "seconds": round(outcome.seconds),
        "sessions": outcome.sessions,
        "requests": len(calls),
        "acknowledged": sum(call.ok for call in calls),
        "tries without an answer": sum(call.status is None for call in calls),
        "kills": outcome.kills,
        "faults": ", ".join(f"{count} {what}" for what, count in outcome.faults.most_common()),
        "cells": ", ".join(f"{count} {status}" for status, count in cells.most_common()),
        "runs after a take-over or a dead kernel (recovered)": sum(run["recovered"] for run in runs.values()),
        "sessions said to be lost": len({call.session for call in calls if code_of(call) == "session_lost"}),
        "violations": len(outcome.violations),
    }
    return "\n".join(f"{name:52} {value}" for name, value in rows.items())

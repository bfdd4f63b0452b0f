"""Clients at work: many sessions at once, each with a client of its own that retries until it has a definite answer."""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.client import NoDefiniteAnswer, Talk, Witness, code_of
from tests.faults.history import Call

QUICK_S = 0.05
LONG_S = 0.8
STEPS = (4, 14)
"""Of one session, at least and at most."""


class Writers:
    """`start`, then `stop`: each session is brought to its end, so that the checker has the last word on it."""

    def __init__(self, witness: Witness, effects: Path | None, count: int, seed: int) -> None:
        self._witness = witness
        self._effects = effects
        self._seed = seed
        self._stopping = threading.Event()
        self.sessions = 0
        self.gave_up: list[str] = []
        self._pool = ThreadPoolExecutor(count, "writer")
        self._futures = [self._pool.submit(self._write, number) for number in range(count)]

    def stop(self) -> None:
        """No new session is begun. Wait for those there are; the cluster must be whole."""
        self._stopping.set()
        self._pool.shutdown()
        for future in self._futures:
            future.result()

    def _write(self, number: int) -> None:
        dice = random.Random(self._seed * 1000 + number)
        count = 0
        while not self._stopping.is_set():
            count += 1
            self.sessions += 1
            name = f"w{number}-{count}"
            effects = None if self._effects is None else self._effects / name
            try:
                life(self._witness, name, effects, dice, self._stopping)
            except NoDefiniteAnswer as problem:
                self.gave_up.append(str(problem))
            if effects is not None:
                self._witness.history.read_effects(name, effects)


def life(witness: Witness, name: str, effects: Path | None, dice: random.Random, stopping: threading.Event) -> None:
    """Of one session: a few steps, each drawn, then its end."""
    session = Talk(witness, name, effects, replay=dice.random() < 0.5)
    if not session.created.ok:
        return
    for _ in range(dice.randint(*STEPS)):
        if is_over(step(session, dice)):
            return
        if stopping.is_set():
            break
    if dice.random() < 0.3:
        session.delete()
        session.run(session.code())
        session.read()
        witness.surely("create", name, "POST", "", {"session_id": name}, key=f"again-{name}")
        if effects is not None:
            time.sleep(QUICK_S)
    else:
        session.finish()


def step(session: Talk, dice: random.Random) -> Sequence[Call]:
    """One or two requests; several cells may be pending, and their order is known."""
    kind = dice.random()
    if kind < 0.25:
        return [session.queue(*(session.code(seconds(dice)) for _ in range(dice.randint(1, 3))))]
    if kind < 0.6:
        return [session.run(session.code(seconds(dice)))]
    if kind < 0.7:
        return [session.run_later(session.code(seconds(dice)))]
    if kind < 0.8:
        return [session.run()]
    if kind < 0.9:
        with ThreadPoolExecutor(2) as both:
            return list(both.map(session.run, [session.code(seconds(dice)), session.code()]))
    return [session.read()]


def seconds(dice: random.Random) -> float:
    return dice.choice((0.0, 0.0, QUICK_S, QUICK_S, LONG_S))


def is_over(calls: Sequence[Call]) -> bool:
    return any(code_of(call) in ("session_lost", "session_not_found") for call in calls)

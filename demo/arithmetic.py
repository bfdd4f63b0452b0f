"""The demo's task: `a*b+c*d`, three cells and one run. When to ask for the run is the whole of the skill.

A run after the first or the second cell shows nothing that answers the problem, and there is no second one; the answer
alone is rewarded. So a policy that asks early must guess, and one that defers until the third cell can copy.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE_OPEN, FENCE_CLOSE = "```python\n", "\n```\n"
TRIGGER = "<tool_call>"
OBSERVATION_OPEN, OBSERVATION_CLOSE = "\nCode execution result: ", "\n</tool_call>\n"
BOXED_OPEN, BOXED_CLOSE = "\\boxed{", "}"
LEAD_INS = ("x is\n", "y is\n", "so\n")
PHRASES = (FENCE_OPEN, FENCE_CLOSE, OBSERVATION_OPEN, OBSERVATION_CLOSE, BOXED_OPEN, BOXED_CLOSE, *LEAD_INS)
"""What the tiny model reads and writes as one token each, so that an episode has about forty tokens."""


@dataclass(frozen=True, slots=True)
class Problem:
    a: int
    b: int
    c: int
    d: int

    @property
    def text(self) -> str:
        return f"{self.a}*{self.b}+{self.c}*{self.d}"

    @property
    def answer(self) -> int:
        return self.a * self.b + self.c * self.d


def split(held_out: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """All 4096 problems with factors 2 to 9, shuffled: those to train on, and `held_out` that training never sees."""
    digits = range(2, 10)
    problems = [Problem(a, b, c, d) for a in digits for b in digits for c in digits for d in digits]
    random.Random(seed).shuffle(problems)
    return problems[held_out:], problems[:held_out]


def write_tasks(problems: list[Problem], path: Path) -> None:
    rows = ({"id": p.text, "problem": p.text, "answer": str(p.answer), "source": "arithmetic"} for p in problems)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a warm-start trace; observations are context, not something to imitate."""

    text: str
    learned: bool


def trace(problem: Problem, rng: random.Random) -> Iterator[Piece]:
    """One episode of the undecided behaviour to start from: a coin after each cell decides whether to ask for a run.

    It knows how to write cells, to copy what a run shows, and to guess when nothing was shown; not when to ask.
    """
    yield Piece(problem.text + "\n", learned=False)
    shown: str | None = None
    asked = False
    for index, (lead_in, code) in enumerate(zip(LEAD_INS, _cells(problem), strict=True)):
        yield Piece(lead_in + FENCE_OPEN + code + FENCE_CLOSE, learned=True)
        if rng.random() < 0.5:
            yield Piece(TRIGGER, learned=True)
            if asked:  # there is only one run: the second request ends the episode
                return
            asked = True
            shown = str(problem.answer) if index == 2 else ""
            yield Piece(OBSERVATION_OPEN + shown + OBSERVATION_CLOSE, learned=False)
    yield Piece(BOXED_OPEN + (shown or str(rng.randint(8, 162))) + BOXED_CLOSE, learned=True)


def _cells(problem: Problem) -> tuple[str, str, str]:
    return f"x={problem.a}*{problem.b}", f"y={problem.c}*{problem.d}", "x+y"

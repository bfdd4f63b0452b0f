"""Two phases, two runs: problems whose answer hangs on when a run is asked for.

A problem is a start value, one to three operands and a number of one to three:

    prompt        4 7 2 9 - 3              start value 47; operands 2 and 9; three cells in the second phase
    phase 1       `2` `9`                  a cell for each operand; the last one's value is a letter, A B or C
    run           > B                      the policy asks, and reads the letter
    phase 2       `B` `B` `B`              the letter decides what the cells are; the last one's value is a digit
    run           > 6
    answer        = 6                      rewarded with 1 if it is right

A cell folds its symbols into the session's value by exact arithmetic modulo a prime, which nobody does in their head.
A run prints the value of the newest cell, and only of a phase's last cell is there anything to print: else it prints
`.`. Two runs are allowed, any more print `!`. So a run in the midst of a phase is used up in vain, and one that is left
out leaves a guess: among three letters, or among ten digits. Asking after every cell and never asking before the end
are both tempting, and both far from the best.

No sandbox is involved: a session is a few integers, and thousands of them are stepped at once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SYMBOLS = ">0123456789ABC-`.!="
TRIGGER, DASH, FENCE, NOTHING, REFUSED, EQUALS = (SYMBOLS.index(symbol) for symbol in ">-`.!=")
FIRST_DIGIT, FIRST_LETTER = SYMBOLS.index("0"), SYMBOLS.index("A")
DIGITS, LETTERS = 10, 3
LONGEST_PHASE = 3
RUNS = 2
PROMPT_LENGTH = 3 + LONGEST_PHASE
LENGTH = 40
"""Of the longest trajectory: two symbols more than one needs that runs after every cell."""

NO_SYMBOL = -1
_MODULUS = 9973


class Problems(NamedTuple):
    start_N: Tensor
    operands_NK: Tensor
    first_N: Tensor
    """Cells of the first phase: so many of the operands count."""
    second_N: Tensor

    def repeat(self, times: int) -> "Problems":
        """Each problem so many times, its copies side by side."""
        return Problems(*(field.repeat_interleave(times, 0) for field in self))


def draw_problems(count: int, rng: torch.Generator) -> Problems:
    return Problems(
        start_N=torch.randint(DIGITS**2, (count,), generator=rng),
        operands_NK=torch.randint(DIGITS, (count, LONGEST_PHASE), generator=rng),
        first_N=torch.randint(1, LONGEST_PHASE + 1, (count,), generator=rng),
        second_N=torch.randint(1, LONGEST_PHASE + 1, (count,), generator=rng),
    )


def prompts(problems: Problems) -> Tensor:
    """[N, PROMPT_LENGTH], all of one length, so that trajectories stay in step."""
    absent_NK = torch.arange(LONGEST_PHASE) >= problems.first_N[:, None]
    columns = (
        FIRST_DIGIT + torch.stack([problems.start_N // DIGITS, problems.start_N % DIGITS], 1),
        torch.where(absent_NK, DASH, FIRST_DIGIT + problems.operands_NK),
        FIRST_DIGIT + problems.second_N[:, None],
    )
    return torch.cat(columns, 1)


def solutions(problems: Problems) -> tuple[Tensor, Tensor]:
    """The symbols of the letter and of the answer, each [N]."""
    value_N = problems.start_N
    for index in range(LONGEST_PHASE):
        folded_N = _fold(value_N, FIRST_DIGIT + problems.operands_NK[:, index])
        value_N = torch.where(index < problems.first_N, folded_N, value_N)
    letter_N = _letter(value_N)
    for index in range(LONGEST_PHASE):
        value_N = torch.where(index < problems.second_N, _fold(value_N, letter_N), value_N)
    return letter_N, _digit(value_N)


class Sessions:
    """What the symbols that were written so far amount to; every field is [N]."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self._value = problems.start_N.clone()
        nothing = torch.zeros_like(problems.start_N)
        self.cells, self.runs, self.deferred = nothing.clone(), nothing.clone(), nothing.clone()
        self.invocations = nothing.clone()
        """Which cells were the newest at each run, as the digits of a number: what runs were asked for, and when."""
        self.inside, self.may_choose, self.answering = nothing.bool(), nothing.bool(), nothing.bool()
        """Within a cell; right after one, where a run is a choice; after the equals sign."""
        self._pending = nothing.clone()
        self.answer = torch.full_like(nothing, NO_SYMBOL)

    @property
    def done(self) -> Tensor:
        return self.answer != NO_SYMBOL

    def write(self, symbols: Tensor, active: Tensor) -> Tensor:
        """Take one symbol each where `active`; returns the observation that follows, or `NO_SYMBOL`."""
        self.answer = torch.where(active & self.answering, symbols, self.answer)
        active = active & ~self.answering
        triggered = active & (symbols == TRIGGER)
        closed = active & self.inside & (symbols == FENCE)
        content = active & self.inside & (symbols != FENCE) & ~triggered
        self.answering = self.answering | (active & ~self.inside & (symbols == EQUALS))
        self.inside = self.inside ^ (active & (symbols == FENCE))
        self._value = torch.where(content, _fold(self._value, symbols), self._value)
        self.cells = self.cells + closed
        self._pending = self._pending + closed
        self.may_choose = torch.where(active, closed, self.may_choose)
        return self._run(triggered)

    def rewards(self) -> Tensor:
        return (self.answer == solutions(self.problems)[1]).float()

    def _run(self, triggered: Tensor) -> Tensor:
        first, last = self.problems.first_N, self.problems.first_N + self.problems.second_N
        shown = torch.full_like(self.cells, NOTHING)
        shown = torch.where(self.cells == first, _letter(self._value), shown)
        shown = torch.where(self.cells == last, _digit(self._value), shown)
        shown = torch.where(self._pending == 0, NOTHING, shown)
        shown = torch.where(self.runs >= RUNS, REFUSED, shown)
        self.runs = self.runs + triggered
        self.deferred = self.deferred + torch.where(triggered, (self._pending - 1).clamp(min=0), 0)
        self.invocations = torch.where(triggered, 10 * self.invocations + self.cells + 1, self.invocations)
        self._pending = torch.where(triggered, 0, self._pending)
        return torch.where(triggered, shown, NO_SYMBOL)


def _fold(value: Tensor, symbol: Tensor) -> Tensor:
    return (value * value + 37 * symbol + 11) % _MODULUS


def _letter(value: Tensor) -> Tensor:
    return FIRST_LETTER + value % LETTERS


def _digit(value: Tensor) -> Tensor:
    return FIRST_DIGIT + value % DIGITS

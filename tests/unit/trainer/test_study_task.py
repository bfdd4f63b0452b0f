"""The task: what a run prints when, and that only asking at the right moments pays."""

import pytest
import torch
from torch import Tensor

from cellar_trainer.study.sampler import Choice, Rollouts, demonstrating, play
from cellar_trainer.study.task import (
    LENGTH,
    PROMPT_LENGTH,
    RUNS,
    SYMBOLS,
    Problems,
    Sessions,
    draw_problems,
    prompts,
    solutions,
)

PROBLEM = Problems(*(torch.tensor([value]) for value in (47, [2, 9, 0], 2, 3)))
"""Two cells, then three."""


def written(rollouts: Rollouts, row: int = 0) -> str:
    """What comes after the prompt, without what comes after the end."""
    text = "".join(SYMBOLS[symbol] for symbol in rollouts.symbols_NL[row].tolist())[PROMPT_LENGTH:]
    return text[: text.index("=") + 2] if "=" in text else text


def write(text: str) -> Rollouts:
    """The text, written by someone who does not look at what is printed."""
    symbols = iter(text)

    def choose(symbols_NT: Tensor, sessions: Sessions) -> Choice:
        forced = bool(SYMBOLS[int(symbols_NT[0, -1])] == ">")
        symbol = torch.tensor([SYMBOLS.index("." if forced else next(symbols))])
        return Choice(symbol, torch.zeros(1), torch.zeros(1))

    return play(PROBLEM, choose)


def solution() -> tuple[str, str]:
    letter_N, answer_N = solutions(PROBLEM)
    return SYMBOLS[int(letter_N)], SYMBOLS[int(answer_N)]


def by_hand() -> tuple[str, str]:
    value = 47
    for digit in (2, 9):
        value = (value * value + 37 * SYMBOLS.index(str(digit)) + 11) % 9973
    letter = "ABC"[value % 3]
    for _ in range(3):
        value = (value * value + 37 * SYMBOLS.index(letter) + 11) % 9973
    return letter, str(value % 10)


def test_the_prompt_says_everything_but_the_letter() -> None:
    assert "".join(SYMBOLS[symbol] for symbol in prompts(PROBLEM)[0].tolist()) == "4729-3"


def test_the_solution_is_exact_arithmetic() -> None:
    assert solution() == by_hand()


def test_asking_at_the_end_of_each_phase_shows_the_letter_and_the_answer() -> None:
    letter, answer = solution()
    cell = f"`{letter}`"

    rollouts = write(f"`2``9`>{cell * 3}>={answer}")

    assert written(rollouts) == f"`2``9`>{letter}{cell * 3}>{answer}={answer}"
    assert rollouts.rewards_N.tolist() == [1.0]
    assert rollouts.runs_N.tolist() == [2]
    assert rollouts.deferred_N.tolist() == [1 + 2]


def test_a_run_in_the_midst_of_a_phase_is_used_up_in_vain() -> None:
    letter, answer = solution()
    cell = f"`{letter}`"

    rollouts = write(f"`2`>`9`>{cell * 3}>={answer}")

    assert written(rollouts) == f"`2`>.`9`>{letter}{cell * 3}>!={answer}", "the third run of two is refused"
    assert RUNS == 2


def test_a_run_with_nothing_new_to_run_prints_nothing() -> None:
    assert written(write("`2``9`>>=0")) == f"`2``9`>{solution()[0]}>.=0"


def test_no_answer_is_no_reward() -> None:
    rollouts = write("`2`" * 20)

    assert rollouts.symbols_NL.shape == (1, LENGTH)
    assert rollouts.rewards_N.tolist() == [0.0]


def test_choices_are_what_comes_right_after_a_cell() -> None:
    rollouts = write("`2``9`>`A`=1")
    chosen = "".join(
        SYMBOLS[symbol]
        for symbol, flag in zip(rollouts.symbols_NL[0, 1:].tolist(), rollouts.may_choose_NT[0].tolist(), strict=True)
        if flag
    )

    assert chosen == "`>="


def test_observations_are_not_sampled() -> None:
    rollouts = write("`2``9`>`A`>=1")
    sampled = [
        SYMBOLS[s] for s, own in zip(rollouts.symbols_NL[0, 1:], rollouts.sampled_NT[0].tolist(), strict=True) if own
    ]

    assert "".join(sampled) == "`2``9`>`A`>=1"


@pytest.mark.parametrize("cells", [(1, 1), (3, 3)])
def test_both_temptations_are_far_from_the_best(cells: tuple[int, int]) -> None:
    """Asking after every cell, or only at the end; each writes right cells and guesses what it has not seen."""
    rng = torch.Generator().manual_seed(0)
    count = 600
    problems = draw_problems(count, rng)._replace(
        first_N=torch.full((count,), cells[0]), second_N=torch.full((count,), cells[1])
    )

    def reward(asks: Tensor) -> float:
        demonstrator = demonstrating(problems, asks, rng)
        return play(problems, demonstrator).metrics()["reward_mean"]

    ends = torch.zeros(count, 6, dtype=torch.bool)
    ends[:, [cells[0] - 1, sum(cells) - 1]] = True
    last = torch.zeros_like(ends)
    last[:, sum(cells) - 1] = True

    assert reward(ends) == 1.0
    assert 0.3 < reward(last) < 0.5
    if cells == (3, 3):
        assert reward(torch.ones_like(ends)) < 0.2

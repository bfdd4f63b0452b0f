"""Trajectories of many problems at once, by whatever chooses the next symbols."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cellar_trainer.study.network import Cache, Network
from cellar_trainer.study.task import (
    DIGITS,
    EQUALS,
    FENCE,
    FIRST_DIGIT,
    FIRST_LETTER,
    LENGTH,
    LETTERS,
    LONGEST_PHASE,
    NO_SYMBOL,
    PROMPT_LENGTH,
    TRIGGER,
    Problems,
    Sessions,
    prompts,
)


class Choice(NamedTuple):
    symbols_N: Tensor
    logprobs_N: Tensor
    trigger_logprobs_N: Tensor


Chooser = Callable[[Tensor, Sessions], Choice]
"""The next symbol of each trajectory, from all symbols so far [N, T] and the sessions."""


class Rollouts(NamedTuple):
    """Position t of what is [N, T] is about the symbol at t + 1: what a model learns at position t."""

    symbols_NL: Tensor
    """Prompt, sampled symbols and observations; L = T + 1. After a trajectory's end, anything."""
    sampled_NT: Tensor
    may_choose_NT: Tensor
    """Whether the symbol comes right after a cell, where asking for a run is a choice."""
    logprobs_NT: Tensor
    trigger_logprobs_NT: Tensor
    rewards_N: Tensor
    runs_N: Tensor
    deferred_N: Tensor
    invocations_N: Tensor

    def part(self, rows: slice) -> "Rollouts":
        return Rollouts(*(field[rows] for field in self))

    def metrics(self) -> dict[str, float]:
        runs, deferred = float(self.runs_N.sum()), float(self.deferred_N.sum())
        return {
            "reward_mean": float(self.rewards_N.mean()),
            "runs_per_trajectory": runs / len(self.runs_N),
            "deferral_rate": deferred / max(deferred + runs, 1.0),
        }


@torch.no_grad()
def play(problems: Problems, choose: Chooser) -> Rollouts:
    """Until every trajectory has its answer, or is as long as may be."""
    sessions = Sessions(problems)
    columns = list(prompts(problems).unbind(1))
    forced_N = torch.full_like(columns[0], NO_SYMBOL)
    zeros_N, never_N = torch.zeros(len(forced_N)), torch.zeros_like(forced_N, dtype=torch.bool)
    notes = [(never_N, never_N, zeros_N, zeros_N)] * (PROMPT_LENGTH - 1)
    while len(columns) < LENGTH and not sessions.done.all():
        choice = choose(torch.stack(columns, 1), sessions)
        sampled_N = (forced_N == NO_SYMBOL) & ~sessions.done
        notes.append((sampled_N, sampled_N & sessions.may_choose, choice.logprobs_N, choice.trigger_logprobs_N))
        columns.append(torch.where(forced_N == NO_SYMBOL, choice.symbols_N, forced_N))
        forced_N = sessions.write(columns[-1], sampled_N)
    sampled_NT, may_choose_NT, logprobs_NT, trigger_logprobs_NT = (
        torch.stack(column, 1) for column in zip(*notes, strict=True)
    )
    return Rollouts(
        torch.stack(columns, 1),
        sampled_NT,
        may_choose_NT,
        logprobs_NT,
        trigger_logprobs_NT,
        rewards_N=sessions.rewards(),
        runs_N=sessions.runs,
        deferred_N=sessions.deferred,
        invocations_N=sessions.invocations,
    )


def sampling(network: Network, uniforms_NL: Tensor) -> Chooser:
    """The network's policy. `uniforms_NL` decide by inversion, the trigger first: like policies choose alike."""
    return _choosing(network, lambda logprobs_NV, t, _: _invert(logprobs_NV, uniforms_NL[:, t]))


def greedy(network: Network) -> Chooser:
    return _choosing(network, lambda logprobs_NV, t, _: logprobs_NV.argmax(-1))


def right_gate(network: Network, uniforms_NL: Tensor) -> Chooser:
    """The network's policy but for its gate: it asks at the end of each phase, and never else."""

    def pick(logprobs_NV: Tensor, t: int, sessions: Sessions) -> Tensor:
        first_N, second_N = sessions.problems.first_N, sessions.problems.second_N
        ended_N = (sessions.cells == first_N) | (sessions.cells == first_N + second_N)
        ordinary_NV = logprobs_NV.index_fill(1, torch.tensor(TRIGGER), float("-inf")).log_softmax(-1)
        return torch.where(sessions.may_choose & ended_N, TRIGGER, _invert(ordinary_NV, uniforms_NL[:, t]))

    return _choosing(network, pick)


def _choosing(network: Network, pick: Callable[[Tensor, int, Sessions], Tensor]) -> Chooser:
    cache: Cache = []

    def choose(symbols_NT: Tensor, sessions: Sessions) -> Choice:
        unseen_NT = symbols_NT[:, -1:] if cache else symbols_NT
        logprobs_NV = network.logprobs(network.hidden(unseen_NT, cache)[:, -1])
        symbols_N = pick(logprobs_NV, symbols_NT.shape[1], sessions)
        return Choice(symbols_N, logprobs_NV.gather(1, symbols_N[:, None])[:, 0], logprobs_NV[:, TRIGGER])

    return choose


def _invert(logprobs_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """The trigger is symbol 0, so that alike gates fire at the same numbers whatever lies below them."""
    return (logprobs_NV.exp().cumsum(-1) <= uniforms_N[:, None]).sum(-1).clamp(max=logprobs_NV.shape[-1] - 1)


def demonstrating(problems: Problems, asks_NC: Tensor, rng: torch.Generator) -> Chooser:
    """Writes the right cells, and asks for a run after the c-th cell where `asks_NC[:, c]`.

    It copies what it has observed, and guesses a letter or a digit that it has not.
    """
    count = len(problems.start_N)
    letter_N = FIRST_LETTER + torch.randint(LETTERS, (count,), generator=rng)
    answer_N = FIRST_DIGIT + torch.randint(DIGITS, (count,), generator=rng)
    zeros_N = torch.zeros(count)

    def choose(symbols_NT: Tensor, sessions: Sessions) -> Choice:
        newest_N = symbols_NT[:, -1]
        observed_N = symbols_NT[:, -2] == TRIGGER
        letter_N.copy_(torch.where(observed_N & _within(newest_N, FIRST_LETTER, LETTERS), newest_N, letter_N))
        answer_N.copy_(torch.where(observed_N & _within(newest_N, FIRST_DIGIT, DIGITS), newest_N, answer_N))
        operand_N = problems.operands_NK.gather(1, sessions.cells.clamp(max=LONGEST_PHASE - 1)[:, None])[:, 0]
        content_N = torch.where(sessions.cells < problems.first_N, FIRST_DIGIT + operand_N, letter_N)
        unfinished_N = sessions.cells < problems.first_N + problems.second_N
        symbols_N = torch.where(unfinished_N, FENCE, EQUALS)
        asks_N = asks_NC.gather(1, (sessions.cells - 1).clamp(min=0)[:, None])[:, 0]
        symbols_N = torch.where(sessions.may_choose & asks_N, TRIGGER, symbols_N)
        symbols_N = torch.where(sessions.inside, torch.where(newest_N == FENCE, content_N, FENCE), symbols_N)
        return Choice(torch.where(sessions.answering, answer_N, symbols_N), zeros_N, zeros_N)

    return choose


def _within(symbols_N: Tensor, first: int, count: int) -> Tensor:
    return (symbols_N >= first) & (symbols_N < first + count)

"""One run of one variant: on-policy steps from a warm start, and what was seen on the way."""

from typing import NamedTuple

import torch
from torch import Tensor

from cellar_trainer.learning.advantages import group_advantages
from cellar_trainer.learning.objectives import ObjectiveOptions, SampledTokens, policy_objective
from cellar_trainer.learning.objectives.measures import Measure, merge
from cellar_trainer.study.measures import gate_logits
from cellar_trainer.study.network import Network
from cellar_trainer.study.sampler import Rollouts, play, sampling
from cellar_trainer.study.task import LENGTH, TRIGGER, draw_problems
from cellar_trainer.study.variants import AGAIN, is_explicit, options_of
from cellar_trainer.study.warm_start import State, network_of

SIBLINGS = 8
"""Trajectories of one problem in one step."""
CLIP_NORM = 1.0
_SAMPLING = 10_000

Gradient = list[Tensor]


class Run(NamedTuple):
    network: Network
    steps: list[dict[str, float]]
    gates_MS: Tensor
    """The gate's log-odds at each mark, at the fixed states that were given."""


def train(
    start: State,
    variant: str,
    learning_rate: float,
    *,
    seed: int,
    steps: int,
    problems: int,
    fixed: Rollouts,
    mark_every: int,
) -> Run:
    """All variants of a seed see the same problems and the same random numbers, but for the control.

    A mark is set before the first step and after each `mark_every` steps.
    """
    problem_rng = torch.Generator().manual_seed(seed)
    rng = torch.Generator().manual_seed(seed + _SAMPLING * (2 if variant == AGAIN else 1))
    network = network_of(start, explicit=is_explicit(variant))
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.0)
    records, gates = [], [gate_logits(network, fixed)]
    for step in range(1, steps + 1):
        rollouts = draw_batch(network, problems, problem_rng, rng)
        halves, measures = half_gradients(network, rollouts, options_of(variant))
        for parameter, *parts in zip(network.parameters(), *halves, strict=True):
            parameter.grad = sum(parts) / len(parts)  # type: ignore[assignment]  # a tensor
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimiser.step()
        records.append(rollouts.metrics() | measures | {"grad_norm": float(norm)} | signal_and_noise(*halves))
        if step % mark_every == 0:
            gates.append(gate_logits(network, fixed))
    return Run(network, records, torch.stack(gates))


def draw_batch(network: Network, count: int, problem_rng: torch.Generator, rng: torch.Generator) -> Rollouts:
    """Of so many problems, with all their siblings."""
    problems = draw_problems(count, problem_rng).repeat(SIBLINGS)
    return play(problems, sampling(network, torch.rand(count * SIBLINGS, LENGTH, generator=rng)))


def half_gradients(
    network: Network, rollouts: Rollouts, options: ObjectiveOptions
) -> tuple[tuple[Gradient, Gradient], dict[str, float]]:
    """The gradient of each half of the problems; their mean is the step's. Both are scaled by the step's token count,
    so that every token counts alike. A parameter that the loss does not know has a gradient of 0."""
    keys = [row // SIBLINGS for row in range(len(rollouts.rewards_N))]
    advantages_N = torch.tensor(group_advantages(rollouts.rewards_N.tolist(), keys))
    middle, tokens = len(keys) // 2, float(rollouts.sampled_NT.sum())
    gradients, measures = [], dict[str, Measure]()
    for half in (slice(0, middle), slice(middle, None)):
        loss, more = _loss(network, rollouts.part(half), advantages_N[half], options)
        merge(measures, more)
        parameters = list(network.parameters())
        gradients.append(list(torch.autograd.grad(loss * 2 / tokens, parameters, materialize_grads=True)))
    return (gradients[0], gradients[1]), {"hierarchical_coefficient": float(measures["hierarchical_coefficient"])}


def signal_and_noise(one: Gradient, other: Gradient) -> dict[str, float]:
    """Unbiased estimates of the squared norm of the expected gradient, and of the variance of the step's gradient.

    With independent halves, E[one . other] = |g|^2, and E|one - other|^2 / 4 is the trace of the covariance of their
    mean.
    """
    return {
        "signal": sum(float((a * b).sum()) for a, b in zip(one, other, strict=True)),
        "noise": sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)) / 4,
    }


def _loss(
    network: Network, rollouts: Rollouts, advantages_N: Tensor, options: ObjectiveOptions
) -> tuple[Tensor, dict[str, Measure]]:
    """The sum over the sampled tokens."""
    at = rollouts.sampled_NT
    hidden_SD = network.hidden(rollouts.symbols_NL[:, :-1])[at]
    rows_NT = torch.arange(len(advantages_N))[:, None].expand_as(at)
    tokens = SampledTokens(
        targets_N=rollouts.symbols_NL[:, 1:][at],
        old_logprobs_N=rollouts.logprobs_NT[at],
        old_trigger_logprobs_N=rollouts.trigger_logprobs_NT[at],
        advantages_N=advantages_N[:, None].expand_as(at)[at],
        sequences_N=rows_NT[at],
        near_fence_N=rollouts.may_choose_NT[at],
    )
    gate_N = network.gate_logits(hidden_SD) if network.explicit else None
    losses, measures = policy_objective(hidden_SD, network.head.weight, tokens, TRIGGER, options, gate_logit_N=gate_N)
    return (losses.policy_N + losses.hierarchical_N).sum(), measures

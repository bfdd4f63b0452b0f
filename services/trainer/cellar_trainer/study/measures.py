"""How alike two policies are: their gates at given states, and when they ask for runs on the same problems."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cellar_trainer.study.network import Network
from cellar_trainer.study.sampler import Rollouts, greedy, play, sampling
from cellar_trainer.study.task import LENGTH, draw_problems


def gate_kl(logits_S: Tensor, other_S: Tensor) -> Tensor:
    """KL of two gates from their log-odds of going on, per state, in nats and float64."""
    logits_S, other_S = logits_S.double(), other_S.double()
    go_on_S = F.logsigmoid(logits_S) - F.logsigmoid(other_S)
    run_S = F.logsigmoid(-logits_S) - F.logsigmoid(-other_S)
    return (logits_S.sigmoid() * go_on_S + (-logits_S).sigmoid() * run_S).clamp(min=0)


@torch.no_grad()
def gate_logits(network: Network, rollouts: Rollouts) -> Tensor:
    """Log-odds of going on at each sampled symbol of the rollouts, [S]."""
    return network.gate_logits(network.hidden(rollouts.symbols_NL[:, :-1])[rollouts.sampled_NT])


def choices(rollouts: Rollouts) -> Tensor:
    """Which of those states come right after a cell, where asking for a run is a choice."""
    return rollouts.may_choose_NT[rollouts.sampled_NT]


def compare(network: Network, other: Network, *, count: int, seed: int) -> dict[str, float]:
    """Two policies on the same fresh problems with the same random numbers.

    The KL of the gates is a mean over the states after a cell: KL(network || other) on the network's own trajectories,
    KL(other || network) on the other's. Agreement is the fraction of problems on which both ask for runs after the same
    cells, with common random numbers and greedily.
    """
    rng = torch.Generator().manual_seed(seed)
    problems, uniforms_NL = draw_problems(count, rng), torch.rand(count, LENGTH, generator=rng)
    mine, others = play(problems, sampling(network, uniforms_NL)), play(problems, sampling(other, uniforms_NL))
    my_best, others_best = play(problems, greedy(network)), play(problems, greedy(other))
    return {
        "kl_on_own": _mean_kl(network, other, mine),
        "kl_on_others": _mean_kl(other, network, others),
        "agreement": _alike(mine, others),
        "agreement_greedy": _alike(my_best, others_best),
    }


def mean_kl_curve(logits_MS: Tensor, other_MS: Tensor, where_S: Tensor) -> list[float]:
    """At each mark, over the states that are marked."""
    return [float(gate_kl(a[where_S], b[where_S]).mean()) for a, b in zip(logits_MS, other_MS, strict=True)]


def cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Of two gradients."""
    flat, other_flat = (torch.cat([part.flatten() for part in parts]) for parts in (one, other))
    return float(F.cosine_similarity(flat, other_flat, dim=0))


def _mean_kl(network: Network, other: Network, rollouts: Rollouts) -> float:
    where_S = choices(rollouts)
    return float(gate_kl(gate_logits(network, rollouts)[where_S], gate_logits(other, rollouts)[where_S]).mean())


def _alike(one: Rollouts, other: Rollouts) -> float:
    return float((one.invocations_N == other.invocations_N).double().mean())

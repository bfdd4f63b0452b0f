"""What all variants of a seed start from: one network that can do everything but decide, and its two policies.

It learns from demonstrations that toss a coin after each cell. A small penalty holds the log of the sum over ordinary
symbols near 0 (the z-loss of PaLM, arXiv 2204.02311), so that the gate's log-odds, log Z - beta_0, are nearly linear in
the hidden state: a gate of one unit, fitted to them, makes the explicit policy start as the implicit one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cellar_trainer.study.network import Network
from cellar_trainer.study.sampler import Rollouts, demonstrating, play, right_gate, sampling
from cellar_trainer.study.task import LENGTH, LONGEST_PHASE, TRIGGER, draw_problems

_LEARNING_RATE = 4e-3
_Z_LOSS = 0.1
_FIT_PROBLEMS = 512

State = dict[str, Tensor]


class Supervised(NamedTuple):
    state: State
    loss: float
    """Of the last demonstrations, per symbol."""
    ceiling: float
    """Its reward if only its gate were right: what is left for learning when to ask."""


def warm_start(seed: int, *, steps: int, demonstrations: int) -> Supervised:
    """A network's state, its gate fitted, after so many steps on so many demonstrations each."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    network = Network(explicit=False)
    optimiser = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    loss = torch.zeros(())
    for _ in range(steps):
        problems = draw_problems(demonstrations, rng)
        asks_NC = torch.rand(demonstrations, 2 * LONGEST_PHASE, generator=rng) < 0.5
        loss, penalty = _losses(network, play(problems, demonstrating(problems, asks_NC, rng)))
        optimiser.zero_grad()
        (loss + _Z_LOSS * penalty).backward()
        optimiser.step()
        schedule.step()
    _fit_gate(network, rng)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    return Supervised(state, loss.item(), _ceiling(network, rng))


def network_of(state: State, *, explicit: bool) -> Network:
    network = Network(explicit=explicit)
    network.load_state_dict(state)
    return network


def own_rollouts(network: Network, count: int, rng: torch.Generator) -> Rollouts:
    """On fresh problems, by the network's own policy."""
    problems = draw_problems(count, rng)
    return play(problems, sampling(network, torch.rand(count, LENGTH, generator=rng)))


def _losses(network: Network, demonstrations: Rollouts) -> tuple[Tensor, Tensor]:
    """Cross-entropy of what was sampled, and the penalty on log Z."""
    logits_NV = network.head(network.hidden(demonstrations.symbols_NL[:, :-1])[demonstrations.sampled_NT])
    targets_N = demonstrations.symbols_NL[:, 1:][demonstrations.sampled_NT]
    return F.cross_entropy(logits_NV, targets_N), logits_NV[:, TRIGGER + 1 :].logsumexp(-1).square().mean()


def _ceiling(network: Network, rng: torch.Generator) -> float:
    problems = draw_problems(_FIT_PROBLEMS, rng)
    uniforms_NL = torch.rand(_FIT_PROBLEMS, LENGTH, generator=rng)
    return play(problems, right_gate(network, uniforms_NL)).metrics()["reward_mean"]


def _fit_gate(network: Network, rng: torch.Generator) -> None:
    """By logistic regression on the implicit policy's own states, from what the gate is if log Z is 0."""
    rollouts = own_rollouts(network, _FIT_PROBLEMS, rng)
    with torch.no_grad():
        hidden_ND = network.hidden(rollouts.symbols_NL[:, :-1])[rollouts.sampled_NT]
        go_on_N = network.gate_logits(hidden_ND).sigmoid()
        network.gate.weight.copy_(-network.head.weight[TRIGGER : TRIGGER + 1])
        network.gate.bias.zero_()
    optimiser = torch.optim.LBFGS(network.gate.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.binary_cross_entropy_with_logits(network.gate(hidden_ND)[:, 0], go_on_N)
        value.backward()
        return value

    optimiser.step(loss)

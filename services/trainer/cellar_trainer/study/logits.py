"""At the level of logits: both policies from one start, under plain gradient steps on their own parameters.

The theorem is about this, and only this: with the exact f the two stay equal, whatever the tokens and advantages are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cellar_trainer.learning.objectives import hierarchical_loss
from cellar_trainer.learning.objectives.eh_grpo import explicit_logprobs
from cellar_trainer.study.measures import gate_kl

SURROGATES: Mapping[str, Mapping[str, Any]] = {
    "exact": {"f": "exact"},
    "second": {"f": "second"},
    "first": {"f": "first"},
    "none": {"f": "none"},
    "released": {"f": "none", "weight": 1e-3},
    "plain": {"weight": 0.0},
}
ETAS = (1e-3, 1e-2, 1e-1, 1.0)
VOCABULARIES = (2, 10, 50, 200)
_TRIGGER = 1
_STATES = 32


def drift(surrogate: str, eta: float, vocabulary: int, *, steps: int, seed: int) -> dict[str, float]:
    """How far apart both policies are after so many steps of size `eta`, in float64.

    Half of the tokens are drawn from the explicit policy and half uniformly; advantages are normal. Gives the largest
    difference of the gate's log-odds and of the conditional probabilities below it, and the mean KL of the gates.
    """
    rng = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(_STATES, vocabulary, generator=rng, dtype=torch.float64)
    explicit_NV, explicit_N = logits_NV.clone(), _gate(logits_NV)
    for _ in range(steps):
        with torch.no_grad():
            policy_NV = explicit_logprobs(explicit_NV, explicit_N, _TRIGGER).exp()
        drawn_N = torch.multinomial(policy_NV, 1, generator=rng)[:, 0]
        any_N = torch.randint(vocabulary, (_STATES,), generator=rng)
        ids_N = torch.where(torch.rand(_STATES, generator=rng) < 0.5, drawn_N, any_N)
        advantages_N = torch.randn(_STATES, generator=rng, dtype=torch.float64)
        explicit_NV, explicit_N = _explicit_step(explicit_NV, explicit_N, ids_N, advantages_N, eta)
        logits_NV = _implicit_step(logits_NV, ids_N, advantages_N, eta, SURROGATES[surrogate])
    implicit_N = _gate(logits_NV)
    return {
        "gate_logit": float((implicit_N - explicit_N).abs().max()),
        "gate_kl": float(gate_kl(explicit_N, implicit_N).mean()),
        "conditional": float((_conditional(logits_NV) - _conditional(explicit_NV)).abs().max()),
    }


def _explicit_step(
    logits_NV: Tensor, gate_N: Tensor, ids_N: Tensor, advantages_N: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    logits_NV, gate_N = logits_NV.requires_grad_(), gate_N.requires_grad_()
    logprobs_N = explicit_logprobs(logits_NV, gate_N, _TRIGGER).gather(1, ids_N[:, None])[:, 0]
    d_logits_NV, d_gate_N = torch.autograd.grad(-(advantages_N * logprobs_N).sum(), (logits_NV, gate_N))
    return (logits_NV - eta * d_logits_NV).detach(), (gate_N - eta * d_gate_N).detach()


def _implicit_step(
    logits_NV: Tensor, ids_N: Tensor, advantages_N: Tensor, eta: float, surrogate: Mapping[str, Any]
) -> Tensor:
    logits_NV = logits_NV.requires_grad_()
    loss_N = hierarchical_loss(logits_NV, ids_N, _TRIGGER, advantages_N, eta=eta, **surrogate)
    (d_logits_NV,) = torch.autograd.grad(loss_N.sum(), logits_NV)
    return (logits_NV - eta * d_logits_NV).detach()


def _gate(logits_NV: Tensor) -> Tensor:
    return _ordinary(logits_NV).logsumexp(-1) - logits_NV[:, _TRIGGER]


def _conditional(logits_NV: Tensor) -> Tensor:
    return _ordinary(logits_NV).softmax(-1)


def _ordinary(logits_NV: Tensor) -> Tensor:
    return torch.cat([logits_NV[:, :_TRIGGER], logits_NV[:, _TRIGGER + 1 :]], 1)

"""How accurate the per-token quantities and their gradients are in float32, wherever the trigger's probability lies.

The oracle is float64 autograd of the plain formulas on the same numbers. One unit is what float32 cannot know about a
logit: epsilon times the largest sum of |h_d w_d|, of which the rounding of every product and partial sum is a part.

    z, log Z               off by a unit or two: rounding the sum is relative, which a logarithm makes absolute
    log p of the trigger   = log sigmoid(z_t - log Z): relative error at most the absolute one of z_t - log Z
    any probability        = exp(difference of two): relative error twice that; sum q^2 twice that again
    gradients              are sums of probabilities times numbers, of one sign for log Z and the trigger

Hence two units each, and twice that for gradients; measured, none needs one.
"""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cellar_trainer.learning.head import TokenScalars, scalars_from_logits, token_scalars
from cellar_trainer.learning.objectives.tokens import SampledTokens, implicit_terms

VOCABULARY, HIDDEN, TRIGGER = 70, 16, 41
PROBABILITIES = [1e-12, 1e-9, 1e-6, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12]
UNITS = 2
QUANTITIES = ("target_logit", "trigger_logit", "log_z", "logprob", "trigger_logprob")


class Problem(NamedTuple):
    """In float32. The last hidden value of a token is the trigger's logit, which no other token's logit depends on."""

    hidden_ND: Tensor
    weight_VD: Tensor
    targets_N: Tensor

    @property
    def unit(self) -> float:
        largest = (self.hidden_ND.abs().double() @ self.weight_VD.abs().double().T).max().item()
        return torch.finfo(torch.float32).eps * largest

    def quantities(self, dtype: torch.dtype, columns: int) -> tuple[dict[str, Tensor], Tensor, tuple[Tensor, Tensor]]:
        """Those with a gradient, sum q^2, and the leaves; in float64 by the plain formulas."""
        leaves = self.hidden_ND.to(dtype).requires_grad_(), self.weight_VD.to(dtype).requires_grad_()
        if dtype == torch.float64:
            scalars = scalars_from_logits(leaves[0] @ leaves[1].T, self.targets_N, TRIGGER)
            logprobs = plain_logprobs(scalars, self.targets_N)
        else:
            scalars = token_scalars(*leaves, self.targets_N, TRIGGER, rows=2, columns=columns)
            logprobs = trained_logprobs(scalars, self.targets_N)
        return dict(zip(QUANTITIES, (*scalars[:3], *logprobs), strict=True)), scalars.sum_q2_N, leaves


def plain_logprobs(scalars: TokenScalars, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """By the logarithm of the sigmoid, since float64 too would lose a probability of 1 - 1e-12 in a subtraction."""
    odds_N = scalars.trigger_logit_N - scalars.log_z_N
    ordinary_N = F.logsigmoid(-odds_N) + scalars.target_logit_N - scalars.log_z_N
    return torch.where(targets_N == TRIGGER, F.logsigmoid(odds_N), ordinary_N), F.logsigmoid(odds_N)


def trained_logprobs(scalars: TokenScalars, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    zero_N = torch.zeros(len(targets_N))
    tokens = SampledTokens(targets_N, zero_N, zero_N, zero_N, targets_N, zero_N > 0)
    terms = implicit_terms(scalars, tokens, TRIGGER)
    return terms.logprobs_N, terms.trigger_logprobs_N


def problem(log_odds: float, target: str, *, scale: float = 1.0) -> Problem:
    """Five tokens, at each of which the trigger has these log-odds."""
    rng = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(5, HIDDEN, generator=rng, dtype=torch.float64)
    weight_VD = scale * torch.randn(VOCABULARY, HIDDEN, generator=rng, dtype=torch.float64)
    weight_VD[:, -1], weight_VD[TRIGGER] = 0, 0
    weight_VD[TRIGGER, -1] = 1
    log_z_N = scalars_from_logits(hidden_ND @ weight_VD.T, torch.zeros(5, dtype=torch.long), TRIGGER).log_z_N
    hidden_ND[:, -1] = log_z_N + log_odds
    targets_N = torch.full((5,), TRIGGER) if target == "trigger" else torch.tensor([0, 15, 16, 40, 69])
    return Problem(hidden_ND.float(), weight_VD.float(), targets_N)


@pytest.mark.parametrize("columns", [1, 16, 4096])
@pytest.mark.parametrize("target", ["trigger", "ordinary"])
@pytest.mark.parametrize("probability", PROBABILITIES)
def test_values_and_gradients_at_every_probability_of_the_trigger(
    probability: float, target: str, columns: int
) -> None:
    log_odds = math.log(probability) - math.log1p(-probability)

    assert_accurate(problem(log_odds, target), columns)


@pytest.mark.parametrize("target", ["trigger", "ordinary"])
@pytest.mark.parametrize("log_odds", [-20_000.0, -1.0, 1.0, 20_000.0])
def test_values_and_gradients_at_logits_of_ten_thousand(log_odds: float, target: str) -> None:
    given = problem(log_odds, target, scale=1500.0)
    assert (given.hidden_ND @ given.weight_VD.T).abs().max() > 1e4

    assert_accurate(given, 16)


def assert_accurate(given: Problem, columns: int) -> None:
    ours, sum_q2_N, leaves = given.quantities(torch.float32, columns)
    exact, exact_sum_q2_N, exact_leaves = given.quantities(torch.float64, columns)
    bound = UNITS * given.unit

    assert (sum_q2_N.double() / exact_sum_q2_N - 1).abs().max() <= 4 * bound
    for name, values_N in exact.items():
        error_N = (ours[name].double() - values_N).abs()
        relative = name == "trigger_logprob" or (name == "logprob" and given.targets_N[0] == TRIGGER)
        assert (error_N <= (values_N.abs() * bound if relative else bound)).all(), name
        for ours_d, exact_d in zip(d_sum(ours[name], leaves), d_sum(values_N, exact_leaves), strict=True):
            assert (ours_d.double() - exact_d).norm() <= 2 * bound * exact_d.norm(), f"gradient of {name}"


def d_sum(values_N: Tensor, leaves: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(values_N.sum(), leaves, retain_graph=True)

"""Objectives: sampled tokens into a loss per token. Pure functions of tensors.

An objective is a choice of a few independent options (`options`): how advantages are made (`advantages`, beside this
package), what ratio is clipped and where (`clip`), what the losses are averaged over (`normalisation`). `eh_grpo` has
the policy of an explicit gate under such a base, `ih_grpo` adds its hierarchical terms to one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cellar_trainer.learning.head import TokenScalars, exact_f, sum_q3, token_scalars
from cellar_trainer.learning.objectives.clip import PolicyLoss, clipped_policy_loss, policy_measures
from cellar_trainer.learning.objectives.eh_grpo import explicit_terms
from cellar_trainer.learning.objectives.ih_grpo import correction, hierarchical_loss, hierarchical_terms
from cellar_trainer.learning.objectives.measures import Measure
from cellar_trainer.learning.objectives.options import PRESETS, ObjectiveOptions
from cellar_trainer.learning.objectives.tokens import SampledTokens, TokenTerms, implicit_terms, trigger_probability

__all__ = ["PRESETS", "Losses", "ObjectiveOptions", "SampledTokens", "hierarchical_loss", "policy_objective"]


class Losses(NamedTuple):
    """Of each token; what is minimised is their sum, weighted as `normalisation` says."""

    policy_N: Tensor
    hierarchical_N: Tensor
    """0 but for IH-GRPO. Its gradient is what counts: its value has no meaning, see docs/algorithm.md."""


def policy_objective(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    tokens: SampledTokens,
    trigger_id: int,
    options: ObjectiveOptions,
    *,
    temperature: float = 1.0,
    gate_logit_N: Tensor | None = None,
) -> tuple[Losses, dict[str, Measure]]:
    """The losses of the sampled tokens of a micro-batch, and measures that tell whether it is healthy.

    `hidden_ND[n]` is the hidden state from which `tokens.targets_N[n]` was sampled, at `temperature`. `eh_grpo` needs
    the gate's logits, which nothing else reads.
    """
    scalars = token_scalars(hidden_ND, weight_VD, tokens.targets_N, trigger_id, temperature=temperature)
    if options.name == "eh_grpo":
        assert gate_logit_N is not None, "eh_grpo is the policy of an explicit gate"
        terms = explicit_terms(scalars, gate_logit_N, tokens, trigger_id, temperature=temperature)
    else:
        terms = implicit_terms(scalars, tokens, trigger_id)
    policy = clipped_policy_loss(terms, options)
    if options.name == "ih_grpo" and options.weight > 0:
        extra_N = _hierarchical(scalars, terms, policy, hidden_ND, weight_VD, trigger_id, options, temperature)
    else:
        extra_N = torch.zeros_like(policy.loss_N)
    return Losses(policy.loss_N, extra_N), policy_measures(terms, policy)


def _hierarchical(
    scalars: TokenScalars,
    terms: TokenTerms,
    policy: PolicyLoss,
    hidden_ND: Tensor,
    weight_VD: Tensor,
    trigger_id: int,
    options: ObjectiveOptions,
    temperature: float,
) -> Tensor:
    # In the surrogate the advantage is whatever multiplies the gradient of log p, so it takes the ratio with it.
    effective_N = policy.coefficient_N if options.respect_clip else -policy.loss_N.detach()
    targets_N, log_z_N, eta = terms.tokens.targets_N, scalars.log_z_N.detach(), options.eta
    f_N = correction(
        options.f,
        scalars,
        effective_N,
        eta,
        sum_q3=lambda: sum_q3(hidden_ND, weight_VD, log_z_N, trigger_id, temperature=temperature),
        exact=lambda: exact_f(
            hidden_ND, weight_VD, targets_N, effective_N, trigger_id, eta=eta, temperature=temperature, log_z_N=log_z_N
        ),
    )
    extra_N = hierarchical_terms(scalars, terms.is_trigger_N, effective_N, f_N)
    return options.weight * torch.where(_acts(terms, options), extra_N, 0)


def _acts(terms: TokenTerms, options: ObjectiveOptions) -> Tensor:
    """The tokens on which the hierarchical terms act."""
    if options.mask == "fence":
        return terms.tokens.near_fence_N | terms.is_trigger_N
    probability_N = trigger_probability(terms.gate_logit_N)
    if options.mask == "response":
        return torch.ones_like(probability_N, dtype=torch.bool)
    low, high = options.live_bounds
    return (probability_N > low) & (probability_N < high)

"""Objectives: sampled tokens into a loss per token. Pure functions of tensors, one file each."""

import torch
from torch import Tensor

from cellar_trainer.head import TokenScalars, exact_f, sum_q3, token_scalars
from cellar_trainer.objectives.base import PRESETS, ObjectiveOptions, token_terms, trigger_probability
from cellar_trainer.objectives.grpo import clipped_policy_loss, policy_metrics
from cellar_trainer.objectives.ih_grpo import correction, hierarchical_loss, hierarchical_terms

__all__ = ["PRESETS", "ObjectiveOptions", "hierarchical_loss", "policy_objective"]


def policy_objective(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    old_logprobs_N: Tensor,
    old_trigger_logprobs_N: Tensor,
    advantages_N: Tensor,
    trigger_id: int,
    options: ObjectiveOptions,
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each sampled token of a micro-batch, and means over them that tell whether it is healthy.

    `hidden_ND[n]` is the hidden state from which `targets_N[n]` was sampled, at `temperature`, with the log-probability
    `old_logprobs_N[n]`, when the trigger's was `old_trigger_logprobs_N[n]`. The caller sums the losses and divides by
    the number of sampled tokens of the whole step. The metrics carry no gradient and are still on the device.
    """
    scalars = token_scalars(hidden_ND, weight_VD, targets_N, trigger_id, temperature=temperature)
    terms = token_terms(scalars, targets_N, old_logprobs_N, old_trigger_logprobs_N, advantages_N, trigger_id)
    policy = clipped_policy_loss(terms, options)
    metrics = policy_metrics(terms, policy)
    if options.name == "grpo" or options.weight == 0:
        return policy.loss_N, metrics
    # In the surrogate the advantage is whatever multiplies the gradient of log p, so it takes the ratio with it.
    effective_N = policy.coefficient_N if options.respect_clip else -policy.loss_N.detach()
    f_N = _f(scalars, hidden_ND, weight_VD, targets_N, effective_N, trigger_id, options, temperature)
    extra_N = hierarchical_terms(scalars, terms.is_trigger_N, effective_N, f_N)
    return policy.loss_N + options.weight * torch.where(_acts(scalars, options), extra_N, 0), metrics


def _f(
    scalars: TokenScalars,
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    advantages_N: Tensor,
    trigger_id: int,
    options: ObjectiveOptions,
    temperature: float,
) -> Tensor:
    log_z_N, eta = scalars.log_z_N.detach(), options.eta
    return correction(
        options.f,
        scalars,
        advantages_N,
        eta,
        sum_q3=lambda: sum_q3(hidden_ND, weight_VD, log_z_N, trigger_id, temperature=temperature),
        exact=lambda: exact_f(
            hidden_ND, weight_VD, targets_N, advantages_N, trigger_id, eta=eta, temperature=temperature, log_z_N=log_z_N
        ),
    )


def _acts(scalars: TokenScalars, options: ObjectiveOptions) -> Tensor:
    """The tokens on which the hierarchical terms act."""
    probability_N = trigger_probability(scalars)
    if options.mask == "response":
        return torch.ones_like(probability_N, dtype=torch.bool)
    low, high = options.live_bounds
    return (probability_N > low) & (probability_N < high)

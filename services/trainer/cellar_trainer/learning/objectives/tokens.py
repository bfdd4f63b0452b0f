"""What every objective is given per sampled token: what the sampler knew, and what the trained policy thinks of it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cellar_trainer.learning.head import TokenScalars


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The sampled tokens of one micro-batch, without gaps; every tensor is [N]."""

    targets_N: Tensor
    old_logprobs_N: Tensor
    """Of the sampled token, under the policy that sampled it."""
    old_trigger_logprobs_N: Tensor
    advantages_N: Tensor
    sequences_N: Tensor
    """Which sequence a token belongs to: any numbers from 0 to below N. A sequence is never spread over batches."""
    near_fence_N: Tensor
    """Whether the token comes right before or right after a code fence."""


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """The same tokens under the policy that is being trained."""

    tokens: SampledTokens
    is_trigger_N: Tensor
    gate_logit_N: Tensor
    """Log-odds of going on against the trigger."""
    logprobs_N: Tensor
    trigger_logprobs_N: Tensor


def implicit_terms(scalars: TokenScalars, tokens: SampledTokens, trigger_id: int) -> TokenTerms:
    """Of one softmax over all tokens, the trigger among them."""
    is_trigger_N = tokens.targets_N == trigger_id
    gate_logit_N = scalars.log_z_N - scalars.trigger_logit_N
    trigger_logprobs_N = F.logsigmoid(-gate_logit_N)  # a certain trigger's is tiny: a subtraction would lose it
    others_N = scalars.target_logit_N - torch.logaddexp(scalars.log_z_N, scalars.trigger_logit_N)
    return TokenTerms(
        tokens,
        is_trigger_N=is_trigger_N,
        gate_logit_N=gate_logit_N,
        logprobs_N=torch.where(is_trigger_N, trigger_logprobs_N, others_N),
        trigger_logprobs_N=trigger_logprobs_N,
    )


def trigger_probability(gate_logit_N: Tensor) -> Tensor:
    """1 - gamma, without gradient; computed by itself, since where it is tiny the subtraction would lose it."""
    return torch.sigmoid(-gate_logit_N).detach()


def hierarchical_coefficient(gate_logit_N: Tensor, is_trigger_N: Tensor) -> Tensor:
    """1[token is not the trigger] - gamma, without gradient: what a gradient of the gate is made of."""
    gamma_N = torch.sigmoid(gate_logit_N).detach()
    return torch.where(is_trigger_N, -gamma_N, trigger_probability(gate_logit_N))

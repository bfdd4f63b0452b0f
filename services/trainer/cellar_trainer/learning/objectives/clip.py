"""The clipped policy loss of PPO and its successors, per token, and the sizes that tell whether it is healthy."""

from typing import NamedTuple

import torch
from torch import Tensor

from cellar_trainer.learning.objectives.measures import Max, Mean, Measure
from cellar_trainer.learning.objectives.options import ObjectiveOptions
from cellar_trainer.learning.objectives.tokens import TokenTerms, hierarchical_coefficient

_LOG_RATIO_BOUND = 20.0


class PolicyLoss(NamedTuple):
    loss_N: Tensor
    coefficient_N: Tensor
    """What the gradient of log p is multiplied with: advantage times ratio, 0 where clipped or masked. No gradient."""
    ratio_N: Tensor
    """Trainer's to sampler's probability, before anything is done about it. No gradient."""


def clipped_policy_loss(terms: TokenTerms, options: ObjectiveOptions) -> PolicyLoss:
    """The larger of -A r and -A clip(r), and for A < 0 at most `dual_clip` times |A|.

    The ratio r is to the probability under the sampler, so it corrects at once for the policy's age and for the
    difference between the sampler's arithmetic and the trainer's. Beyond `importance_cap`, "truncate" keeps the
    gradient with a weight of the cap; "mask" drops the token, also where the ratio is below 1/cap. The dual clip looks
    at the ratio as it was, or a cap below it would leave it nothing to do.
    """
    raw_ratio_N = _log_ratio(terms, options).clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND).exp()
    ratio_N, kept_N = _importance(raw_ratio_N, options)
    advantages_N = terms.tokens.advantages_N
    unclipped_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - options.clip_low, 1 + options.clip_high)
    loss_N = torch.maximum(unclipped_N, clipped_N)
    live_N = kept_N & (loss_N == unclipped_N)
    if options.dual_clip != "none":
        beyond_N = (advantages_N < 0) & (raw_ratio_N > options.dual_clip)
        loss_N = torch.where(beyond_N, -options.dual_clip * advantages_N, loss_N)
        live_N = live_N & ~beyond_N
    return PolicyLoss(
        torch.where(kept_N, loss_N, 0), torch.where(live_N, -unclipped_N, 0).detach(), raw_ratio_N.detach()
    )


def policy_measures(terms: TokenTerms, policy: PolicyLoss) -> dict[str, Measure]:
    """Means over the sampled tokens, those of triggers over triggers; nothing waits for the device here."""
    tokens = terms.tokens
    with torch.no_grad():
        mismatch_N = (terms.logprobs_N - tokens.old_logprobs_N).abs()
        clipped_N = (policy.coefficient_N == 0) & (tokens.advantages_N != 0)
        gate_mismatch_N = (terms.trigger_logprobs_N.exp() - tokens.old_trigger_logprobs_N.exp()).abs()
        return {
            "hierarchical_coefficient": Mean.of(hierarchical_coefficient(terms.gate_logit_N, terms.is_trigger_N).abs()),
            "clip_fraction": Mean.of(clipped_N),
            "entropy": Mean.of(-terms.logprobs_N),
            "mismatch": Mean.of(mismatch_N),
            "mismatch_trigger": Mean.of(mismatch_N, where=terms.is_trigger_N),
            "mismatch_gate": Mean.of(gate_mismatch_N),
            "ratio_max": Max.of(policy.ratio_N),
        }


def _log_ratio(terms: TokenTerms, options: ObjectiveOptions) -> Tensor:
    log_ratio_N = terms.logprobs_N - terms.tokens.old_logprobs_N
    if options.ratio == "token":
        return log_ratio_N
    # GSPO-token: the value is the sequence's, each token has the gradient of its own log p, so that advantages may
    # differ within a sequence. With equal ones and loss_mean = "sequence" the gradient is that of GSPO.
    own_gradient_N = terms.logprobs_N - terms.logprobs_N.detach()
    return _sequence_mean(log_ratio_N.detach(), terms.tokens.sequences_N) + own_gradient_N


def _sequence_mean(values_N: Tensor, sequences_N: Tensor) -> Tensor:
    """Each token's sequence's mean. The sums are N long, since how many sequences there are only the device knows."""
    sums_N = torch.zeros_like(values_N).index_add(0, sequences_N, values_N)
    counts_N = torch.zeros_like(values_N).index_add(0, sequences_N, torch.ones_like(values_N))
    return sums_N[sequences_N] / counts_N[sequences_N]


def _importance(ratio_N: Tensor, options: ObjectiveOptions) -> tuple[Tensor, Tensor]:
    """The ratio to use, and the tokens to keep."""
    cap = options.importance_cap
    if options.importance == "mask":
        return ratio_N, (ratio_N >= 1 / cap) & (ratio_N <= cap)
    if options.importance == "truncate":
        ratio_N = ratio_N * (cap / ratio_N.detach()).clamp(max=1)
    return ratio_N, torch.ones_like(ratio_N, dtype=torch.bool)

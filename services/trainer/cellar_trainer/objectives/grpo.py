"""GRPO's clipped policy loss, per token, and the sizes that tell whether it is healthy."""

from typing import NamedTuple

import torch
from torch import Tensor

from cellar_trainer.objectives.base import ObjectiveOptions, TokenTerms, hierarchical_coefficient

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
    gradient with a weight of the cap; "mask" drops the token, also where the ratio is below 1/cap.
    """
    raw_ratio_N = (terms.logprobs_N - terms.old_logprobs_N).clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND).exp()
    ratio_N, kept_N = _importance(raw_ratio_N, options)
    advantages_N = terms.advantages_N
    unclipped_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - options.clip_low, 1 + options.clip_high)
    loss_N = torch.maximum(unclipped_N, clipped_N)
    loss_N = torch.where(advantages_N < 0, loss_N.minimum(-options.dual_clip * advantages_N), loss_N)
    live_N = kept_N & (loss_N == unclipped_N)
    return PolicyLoss(
        torch.where(kept_N, loss_N, 0), torch.where(live_N, -unclipped_N, 0).detach(), raw_ratio_N.detach()
    )


def policy_metrics(terms: TokenTerms, policy: PolicyLoss) -> dict[str, Tensor]:
    """Means over the sampled tokens, as tensors without gradient, so that nothing waits for the device here."""
    with torch.no_grad():
        mismatch_N = (terms.logprobs_N - terms.old_logprobs_N).abs()
        triggers_N = terms.is_trigger_N.to(mismatch_N.dtype)
        return {
            "hierarchical_coefficient": hierarchical_coefficient(terms.scalars, terms.is_trigger_N).abs().mean(),
            "clip_fraction": ((policy.coefficient_N == 0) & (terms.advantages_N != 0)).to(mismatch_N.dtype).mean(),
            "entropy": -terms.logprobs_N.mean(),
            "mismatch": mismatch_N.mean(),
            "mismatch_trigger": (mismatch_N * triggers_N).sum() / triggers_N.sum().clamp(min=1),
            "mismatch_gate": (terms.trigger_logprobs_N.exp() - terms.old_trigger_logprobs_N.exp()).abs().mean(),
            "ratio_max": policy.ratio_N.max(),
        }


def _importance(ratio_N: Tensor, options: ObjectiveOptions) -> tuple[Tensor, Tensor]:
    """The ratio to use, and the tokens to keep."""
    cap = options.importance_cap
    if options.importance == "mask":
        return ratio_N, (ratio_N >= 1 / cap) & (ratio_N <= cap)
    if options.importance == "truncate":
        ratio_N = ratio_N * (cap / ratio_N.detach()).clamp(max=1)
    return ratio_N, torch.ones_like(ratio_N, dtype=torch.bool)

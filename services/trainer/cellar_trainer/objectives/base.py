"""What every objective is given per sampled token, and how it is chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cellar_trainer.head import TokenScalars

Correction = Literal["none", "first", "second", "exact"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ObjectiveOptions(BaseModel):
    """Which loss is minimised. The clip ranges are those of DAPO, with the dual clip of PPO's successors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["grpo", "ih_grpo"] = "ih_grpo"
    f: Correction = "exact"
    """How far the gate's logit follows the growth of log Z: not at all, to an order in `eta`, or exactly."""
    eta: Positive = 1.0
    """Nominal step size on the logits; matters to the second-order and the exact `f`."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Of the two hierarchical terms; 0 is GRPO."""
    respect_clip: bool = True
    """No hierarchical term where the clip leaves no policy gradient; else it has the clipped ratio, as released."""
    mask: Literal["response", "live"] = "response"
    """Where the hierarchical terms act: on all sampled tokens, or where the trigger was a real choice."""
    live_bounds: tuple[Fraction, Fraction] = (0.001, 0.999)
    """Probabilities of the trigger between which it is a real choice."""
    clip_low: Fraction = 0.2
    clip_high: Positive = 0.28
    dual_clip: Annotated[float, Field(gt=1)] = 3.0
    """Bound of the loss of a token with a negative advantage, in advantages."""
    importance: Literal["truncate", "mask", "none"] = "truncate"
    """What is done about a token whose ratio, trainer's to sampler's probability, is beyond `importance_cap`."""
    importance_cap: Annotated[float, Field(gt=1)] = 2.0

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """One of `PRESETS`, with changes. Raises `KeyError` for an unknown name."""
        return cls.model_validate({**PRESETS[name], **changes})


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {"name": "grpo"},
    "exact": {"name": "ih_grpo", "f": "exact", "weight": 1.0, "respect_clip": True},
    "released": {"name": "ih_grpo", "f": "none", "weight": 0.001, "respect_clip": False, "importance": "none"},
}
"""`exact` is the surrogate as derived; `released` is what the authors' published code minimises."""


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """The sampled tokens of one micro-batch; every tensor is [N]."""

    scalars: TokenScalars
    logprobs_N: Tensor
    """Of the sampled token, under the policy that is being trained."""
    trigger_logprobs_N: Tensor
    old_logprobs_N: Tensor
    """Of the sampled token, under the policy that sampled it."""
    old_trigger_logprobs_N: Tensor
    advantages_N: Tensor
    is_trigger_N: Tensor


def token_terms(
    scalars: TokenScalars,
    targets_N: Tensor,
    old_logprobs_N: Tensor,
    old_trigger_logprobs_N: Tensor,
    advantages_N: Tensor,
    trigger_id: int,
) -> TokenTerms:
    log_total_N = torch.logaddexp(scalars.log_z_N, scalars.trigger_logit_N)
    return TokenTerms(
        scalars,
        logprobs_N=scalars.target_logit_N - log_total_N,
        trigger_logprobs_N=scalars.trigger_logit_N - log_total_N,
        old_logprobs_N=old_logprobs_N,
        old_trigger_logprobs_N=old_trigger_logprobs_N,
        advantages_N=advantages_N,
        is_trigger_N=targets_N == trigger_id,
    )


def trigger_probability(scalars: TokenScalars) -> Tensor:
    """1 - gamma, without gradient; computed by itself, since where it is tiny the subtraction would lose it."""
    return torch.sigmoid(scalars.trigger_logit_N - scalars.log_z_N).detach()


def hierarchical_coefficient(scalars: TokenScalars, is_trigger_N: Tensor) -> Tensor:
    """1[token is not the trigger] - gamma, without gradient: what a gradient of the gate is made of."""
    gamma_N = torch.sigmoid(scalars.log_z_N - scalars.trigger_logit_N).detach()
    return torch.where(is_trigger_N, -gamma_N, trigger_probability(scalars))

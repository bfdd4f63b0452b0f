"""Which loss is minimised: a name, which stands for a value of each of a few independent options."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Base = Literal["grpo", "dr_grpo", "dapo", "gspo", "lampo"]
Correction = Literal["none", "first", "second", "exact"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

BASES: Mapping[str, Mapping[str, Any]] = {
    "dapo": {},
    "grpo": {"clip_high": 0.2, "dual_clip": "none", "loss_mean": "sequence"},
    "dr_grpo": {"clip_high": 0.2, "dual_clip": "none", "loss_mean": "constant", "advantage": "centred"},
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4, "dual_clip": "none", "loss_mean": "sequence", "ratio": "sequence"},
    "lampo": {"clip_high": 0.2, "dual_clip": "none", "loss_mean": "sequence", "advantage": "pairwise"},
}
"""Where each objective differs from the defaults of `ObjectiveOptions`, which are DAPO's."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "exact": {"name": "ih_grpo", "f": "exact", "weight": 1.0, "respect_clip": True},
    "released": {"name": "ih_grpo", "f": "none", "weight": 0.001, "respect_clip": False, "importance": "none"},
}
"""`exact` is the surrogate as derived; `released` is what the authors' published code minimises."""


class ObjectiveOptions(BaseModel):
    """The loss. A default below is that of `ih_grpo`, which is DAPO's; other names have those of `BASES`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Base | Literal["eh_grpo", "ih_grpo"] = "ih_grpo"
    """The objective; the defaults of all that follows depend on it."""
    base: Base = "dapo"
    """Whose options `eh_grpo` and `ih_grpo` start from. Of any other name, the name itself."""

    advantage: Literal["standardised", "centred", "pairwise"] = "standardised"
    """Reward less the group's mean, divided by its standard deviation or not, or LamPO's weighted comparisons."""
    lampo_tau: Positive = 1.0
    """Temperature of the comparisons' weights, in nats of a trajectory's log-probability."""
    lampo_normalise: Literal["count", "weights"] = "count"
    """What a sum of comparisons is divided by: their number or the sum of their weights."""

    ratio: Literal["token", "sequence"] = "token"
    """Of the trainer's to the sampler's probability: each token's own, or the geometric mean over its sequence."""
    clip_low: Fraction = 0.2
    """How far below 1 a ratio may fall before a token with a negative advantage stops moving."""
    clip_high: Positive = 0.28
    """How far above 1 a ratio may rise before a token with a positive advantage stops moving."""
    dual_clip: Annotated[float, Field(gt=1)] | Literal["none"] = 3.0
    """Bound of the loss of a token with a negative advantage, in advantages."""
    importance: Literal["truncate", "mask", "none"] = "truncate"
    """What is done about a token whose ratio is beyond `importance_cap`."""
    importance_cap: Annotated[float, Field(gt=1)] = 2.0
    """Largest ratio of the trainer's to the sampler's probability that is left alone; "mask" drops its inverse too."""

    loss_mean: Literal["token", "sequence", "constant"] = "token"
    """What the tokens' losses are averaged over, in the whole optimiser step: see `normalisation`."""
    constant_length: Annotated[int, Field(gt=0)] = 1000
    """Tokens by which `loss_mean = "constant"` divides each sequence, whatever its length."""

    f: Correction = "exact"
    """How far the gate's logit follows the growth of log Z: not at all, to an order in `eta`, or exactly."""
    eta: Positive = 1.0
    """Nominal step size on the logits; matters to the second-order and the exact `f`."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Of the two hierarchical terms; 0 is the base alone."""
    respect_clip: bool = True
    """No hierarchical term where the clip leaves no policy gradient; else it has the clipped ratio, as released."""
    mask: Literal["response", "fence", "live"] = "response"
    """Where the hierarchical terms act: on all sampled tokens, on those next to a code fence and on triggers, or where
    the trigger was a real choice."""
    live_bounds: tuple[Fraction, Fraction] = (0.001, 0.999)
    """Probabilities of the trigger between which it is a real choice."""

    gate_start: Fraction = 0.01
    """Probability of the trigger, everywhere, of a fresh explicit gate."""

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_base(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = str(values.get("name"))
        if name in BASES:
            if values.get("base", name) != name:
                raise ValueError(f"{name} has no other base; eh_grpo and ih_grpo have")
            values = {**values, "base": name}
        return {**BASES.get(str(values.get("base")), {}), **values}

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """One of `PRESETS`, with changes. Raises `KeyError` for an unknown name."""
        return cls.model_validate({**PRESETS[name], **changes})

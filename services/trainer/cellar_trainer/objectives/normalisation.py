"""The one rule by which the losses of tokens become the loss of an optimiser step.

The loss is the sum, over every sampled token of the step, of weight * loss. With N tokens in S sequences, of which the
token's own has n, the weight is

    "token"       1 / N           every token counts alike                   (DAPO, IH-GRPO)
    "sequence"    1 / (S n)       every sequence counts alike                (GRPO, GSPO, LamPO)
    "constant"    1 / (S C)       every token alike, no mean over lengths    (Dr. GRPO; C is `constant_length`)

N and S are those of the whole step, over all its micro-batches and, should there be several, all its processes. So how
a step is cut into micro-batches changes nothing. Tokens count that are trained on, and sequences that have one.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from cellar_trainer.objectives.options import ObjectiveOptions


class StepTotals(NamedTuple):
    """N and S. Those of parts of a step add up, element by element, to those of the step."""

    tokens: float
    sequences: float


def step_totals(loss_masks: Iterable[Tensor]) -> StepTotals:
    """Count what one optimiser step trains on; each mask is [B, T], a sequence a row."""
    lengths = [mask_BT.sum(-1) for mask_BT in loss_masks]
    return StepTotals(
        tokens=sum(float(length_B.sum()) for length_B in lengths),
        sequences=sum(float((length_B > 0).sum()) for length_B in lengths),
    )


def loss_weights(loss_mask_BT: Tensor, totals: StepTotals, options: ObjectiveOptions) -> Tensor:
    """What to multiply the tokens' losses with before they are summed; 0 outside the mask."""
    if options.loss_mean == "token":
        return loss_mask_BT / totals.tokens
    if options.loss_mean == "constant":
        return loss_mask_BT / (totals.sequences * options.constant_length)
    return loss_mask_BT / (totals.sequences * loss_mask_BT.sum(-1, keepdim=True).clamp(min=1))

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

import torch
from torch import Tensor

from cellar_trainer.learning.objectives.options import ObjectiveOptions


class StepTotals(NamedTuple):
    """N and S. Those of parts of a step add up, element by element, to those of the step."""

    tokens: float
    sequences: float


def step_totals(batches: Iterable[tuple[Tensor, Tensor]]) -> StepTotals:
    """Count what one optimiser step trains on: of each micro-batch the loss mask and the sequences, both [B, T]."""
    lengths = [_lengths(loss_mask_BT, sequences_BT) for loss_mask_BT, sequences_BT in batches]
    return StepTotals(
        tokens=sum(float(length_S.sum()) for length_S in lengths),
        sequences=sum(float((length_S > 0).sum()) for length_S in lengths),
    )


def loss_weights(loss_mask_BT: Tensor, sequences_BT: Tensor, totals: StepTotals, options: ObjectiveOptions) -> Tensor:
    """What to multiply the tokens' losses with before they are summed; 0 outside the mask."""
    if options.loss_mean == "token":
        return loss_mask_BT / totals.tokens
    if options.loss_mean == "constant":
        return loss_mask_BT / (totals.sequences * options.constant_length)
    lengths_BT = _lengths(loss_mask_BT, sequences_BT)[sequences_BT.clamp(min=0)]
    return loss_mask_BT / (totals.sequences * lengths_BT.clamp(min=1))


def _lengths(loss_mask_BT: Tensor, sequences_BT: Tensor) -> Tensor:
    """How many tokens of each sequence are trained on. Padding, of no sequence, has none to count."""
    return torch.bincount(sequences_BT.clamp(min=0).flatten(), weights=loss_mask_BT.flatten()).to(loss_mask_BT.dtype)

"""Trajectories into micro-batches of right-padded rows, each at most so many tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cellar_trainer.types import Trajectory


@dataclass(frozen=True, slots=True)
class Example:
    """A trajectory and what is to be learned from it. What is per token has an entry for each of `token_ids`."""

    trajectory: Trajectory
    advantage: float | Sequence[float]
    """Of all its tokens, or of each."""
    trained: Sequence[int] | None = None
    """1 for the sampled tokens to train on; all of them when left out."""
    near_fence: Sequence[int] | None = None
    """1 for the tokens right before and right after a code fence; none when left out."""

    @property
    def loss_mask(self) -> list[int]:
        """1 for the tokens to train on. No token that was not sampled is among them."""
        sampled = self.trajectory.loss_mask
        return sampled if self.trained is None else [s * t for s, t in zip(sampled, self.trained, strict=True)]

    @property
    def advantages(self) -> Sequence[float]:
        count = len(self.trajectory.token_ids)
        advantages = [self.advantage] * count if isinstance(self.advantage, int | float) else self.advantage
        if len(advantages) != count:
            raise ValueError(f"{count} tokens, {len(advantages)} advantages")
        return advantages


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch. All tensors are [B, T] and are aligned with the token that is predicted.

    Position t is about `targets_BT[b, t]`, given `inputs_BT[b, : t + 1]`. With a trajectory's tokens `P0 S0 S1 O0 S2`:

        inputs         P0 S0 S1 O0
        targets        S0 S1 O0 S2
        loss_mask       1  1  0  1
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    attention_mask_BT: Tensor
    """1 where the input is a token, 0 where it is padding."""
    loss_mask_BT: Tensor
    """1.0 where the target was sampled and is trained on: nothing else is ever trained on."""
    logprobs_BT: Tensor
    """The sampler's log-probability of the target; 0 outside the loss mask."""
    trigger_logprobs_BT: Tensor
    """The sampler's log-probability of the trigger at this position; 0 outside the loss mask."""
    advantages_BT: Tensor
    """0 outside the loss mask."""
    near_fence_BT: Tensor
    """1 where the target comes right before or right after a code fence, as far as anyone looked."""


def pack(examples: Sequence[Example], *, token_budget: int, pad_id: int) -> list[Batch]:
    """Put rows of similar length together, longest first, so that B*T <= `token_budget` in each batch.

    A row that is longer than the budget gets a batch of its own; an example with nothing to train on is left out. The
    same input always gives the same batches. Raises `ValueError` when a trajectory begins with a sampled token, which
    nothing predicts.
    """
    rows = [example for example in examples if any(example.loss_mask)]
    for row in rows:
        if row.trajectory.loss_mask[0]:
            raise ValueError(f"trajectory of task {row.trajectory.task.task_id} has no prompt")
    rows.sort(key=lambda row: len(row.trajectory.token_ids), reverse=True)
    return [_batch(chunk, pad_id) for chunk in _chunks(rows, token_budget)]


def _chunks(rows: list[Example], token_budget: int) -> Iterator[list[Example]]:
    start = 0
    while start < len(rows):
        width = len(rows[start].trajectory.token_ids) - 1
        count = max(1, token_budget // width)
        yield rows[start : start + count]
        start += count


def _batch(rows: list[Example], pad_id: int) -> Batch:
    trajectories = [row.trajectory for row in rows]
    tokens = [trajectory.token_ids for trajectory in trajectories]
    loss_mask_BT = _padded([row.loss_mask[1:] for row in rows], 0, torch.float32)
    return Batch(
        inputs_BT=_padded([ids[:-1] for ids in tokens], pad_id, torch.long),
        targets_BT=_padded([ids[1:] for ids in tokens], pad_id, torch.long),
        attention_mask_BT=_padded([[1] * (len(ids) - 1) for ids in tokens], 0, torch.long),
        loss_mask_BT=loss_mask_BT,
        logprobs_BT=loss_mask_BT * _padded([t.logprobs[1:] for t in trajectories], 0, torch.float32),
        trigger_logprobs_BT=loss_mask_BT * _padded([t.trigger_logprobs[1:] for t in trajectories], 0, torch.float32),
        advantages_BT=loss_mask_BT * _padded([row.advantages[1:] for row in rows], 0, torch.float32),
        near_fence_BT=_padded([(row.near_fence or [0] * len(row.loss_mask))[1:] for row in rows], 0, torch.bool),
    )


def _padded(rows: Sequence[Sequence[float]], fill: int, dtype: torch.dtype) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=dtype)

"""Trajectories into micro-batches of right-padded rows, each at most so many tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cellar_trainer.types import Trajectory


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
    """1.0 where the target was sampled: the only positions that are trained on."""
    logprobs_BT: Tensor
    """The sampler's log-probability of the target; 0 outside the loss mask."""
    trigger_logprobs_BT: Tensor
    """The sampler's log-probability of the trigger at this position; 0 outside the loss mask."""
    advantages_BT: Tensor
    """0 outside the loss mask."""


def pack(
    trajectories: Sequence[Trajectory], advantages: Sequence[float], *, token_budget: int, pad_id: int
) -> list[Batch]:
    """Put rows of similar length together, longest first, so that B*T <= `token_budget` in each batch.

    A row that is longer than the budget gets a batch of its own; a trajectory in which nothing was sampled is left out.
    The same input always gives the same batches. Raises `ValueError` when a trajectory begins with a sampled token,
    which nothing predicts.
    """
    rows = [row for row in zip(trajectories, advantages, strict=True) if row[0].sampled_count]
    for trajectory, _ in rows:
        if trajectory.loss_mask[0]:
            raise ValueError(f"trajectory of task {trajectory.task.task_id} has no prompt")
    rows.sort(key=lambda row: len(row[0].token_ids), reverse=True)
    return [_batch(chunk, pad_id) for chunk in _chunks(rows, token_budget)]


def _chunks(rows: list[tuple[Trajectory, float]], token_budget: int) -> Iterator[list[tuple[Trajectory, float]]]:
    start = 0
    while start < len(rows):
        width = len(rows[start][0].token_ids) - 1
        count = max(1, token_budget // width)
        yield rows[start : start + count]
        start += count


def _batch(rows: list[tuple[Trajectory, float]], pad_id: int) -> Batch:
    trajectories = [trajectory for trajectory, _ in rows]
    tokens = [trajectory.token_ids for trajectory in trajectories]
    loss_mask_BT = _padded([t.loss_mask[1:] for t in trajectories], 0, torch.float32)
    return Batch(
        inputs_BT=_padded([ids[:-1] for ids in tokens], pad_id, torch.long),
        targets_BT=_padded([ids[1:] for ids in tokens], pad_id, torch.long),
        attention_mask_BT=_padded([[1] * (len(ids) - 1) for ids in tokens], 0, torch.long),
        loss_mask_BT=loss_mask_BT,
        logprobs_BT=_padded([t.logprobs[1:] for t in trajectories], 0, torch.float32),
        trigger_logprobs_BT=_padded([t.trigger_logprobs[1:] for t in trajectories], 0, torch.float32),
        advantages_BT=loss_mask_BT * torch.tensor([advantage for _, advantage in rows])[:, None],
    )


def _padded(rows: Sequence[Sequence[float]], fill: int, dtype: torch.dtype) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=dtype)

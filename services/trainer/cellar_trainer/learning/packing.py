"""Trajectories into micro-batches of rows, each batch at most so many tokens, a row several sequences."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cellar_trainer.types import Trajectory

Layout = Literal["packed", "padded"]


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

    Position t is about `targets_BT[b, t]`, given the inputs of its sequence up to `inputs_BT[b, t]`. With one
    trajectory of tokens `P0 S0 S1 O0 S2`, another of `P1 S3`, and a row of six:

        inputs         P0 S0 S1 O0 P1  .
        targets        S0 S1 O0 S2 S3  .
        positions       0  1  2  3  0  1
        sequences       0  0  0  0  1 -1
        loss_mask       1  1  0  1  1  0

    Positions are all that a model of Hugging Face needs to keep sequences apart: a step other than 1 begins another
    one. Padding counts on, so that a row of one sequence stays plainly causal, which is the fastest attention.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor
    """Of the input within its sequence."""
    sequences_BT: Tensor
    """Which of the batch's sequences, from 0 on, the target belongs to; -1 in padding."""
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


def pack(examples: Sequence[Example], *, token_budget: int, pad_id: int, layout: Layout = "packed") -> list[Batch]:
    """Put sequences into rows and rows into batches, the longest first, so that B*T <= `token_budget` in each.

    "packed" fills the room that a row's first sequence leaves with shorter ones; "padded" leaves it empty, for models
    whose layers carry a state from one token to the next, whatever the positions say. A sequence that is longer than
    the budget gets a batch of its own; an example with nothing to train on is left out. The same input always gives the
    same batches. Raises `ValueError` when a trajectory begins with a sampled token, which nothing predicts.
    """
    sequences = [example for example in examples if any(example.loss_mask)]
    for example in sequences:
        if example.trajectory.loss_mask[0]:
            raise ValueError(f"trajectory of task {example.trajectory.task.task_id} has no prompt")
    by_width = sorted(((_width(example), example) for example in sequences), key=lambda pair: pair[0], reverse=True)
    return [_batch(rows, pad_id) for rows in _batches(by_width, token_budget, layout)]


def _width(example: Example) -> int:
    """Positions that a sequence takes: its first token is no target."""
    return len(example.trajectory.token_ids) - 1


def _batches(sequences: list[tuple[int, Example]], token_budget: int, layout: Layout) -> Iterator[list[list[Example]]]:
    """First fit, longest first: a batch opens as many rows of its longest sequence's width as the budget allows."""
    while sequences:
        widest, _ = sequences[0]
        rows: list[list[Example]] = []
        room: list[int] = []
        left_over = []
        for width, example in sequences:
            place = next((row for row, free in enumerate(room) if free >= width), None)
            if place is None and len(rows) < max(1, token_budget // widest):
                place = len(rows)
                rows.append([])
                room.append(widest)
            if place is None:
                left_over.append((width, example))
            else:
                rows[place].append(example)
                room[place] = room[place] - width if layout == "packed" else 0
        yield rows
        sequences = left_over


def _batch(rows: list[list[Example]], pad_id: int) -> Batch:
    def padded(values: Iterable[Iterable[Sequence[float]]], fill: int, dtype: torch.dtype) -> Tensor:
        joined = [[value for sequence in row for value in sequence] for row in values]
        width = max(len(row) for row in joined)
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in joined], dtype=dtype)

    tokens = [[example.trajectory.token_ids for example in row] for row in rows]
    loss_mask_BT = padded(([e.loss_mask[1:] for e in row] for row in rows), 0, torch.float32)
    sequences_BT = padded(_numbered(rows), -1, torch.long)
    logprobs_BT = padded(([e.trajectory.logprobs[1:] for e in row] for row in rows), 0, torch.float32)
    trigger_logprobs_BT = padded(([e.trajectory.trigger_logprobs[1:] for e in row] for row in rows), 0, torch.float32)
    advantages_BT = padded(([e.advantages[1:] for e in row] for row in rows), 0, torch.float32)
    return Batch(
        inputs_BT=padded(([ids[:-1] for ids in row] for row in tokens), pad_id, torch.long),
        targets_BT=padded(([ids[1:] for ids in row] for row in tokens), pad_id, torch.long),
        positions_BT=_positions(sequences_BT),
        sequences_BT=sequences_BT,
        loss_mask_BT=loss_mask_BT,
        logprobs_BT=loss_mask_BT * logprobs_BT,
        trigger_logprobs_BT=loss_mask_BT * trigger_logprobs_BT,
        advantages_BT=loss_mask_BT * advantages_BT,
        near_fence_BT=padded(([_near_fence(e) for e in row] for row in rows), 0, torch.bool),
    )


def _numbered(rows: list[list[Example]]) -> Iterator[list[list[int]]]:
    number = 0
    for row in rows:
        yield [[number + place] * _width(example) for place, example in enumerate(row)]
        number += len(row)


def _positions(sequences_BT: Tensor) -> Tensor:
    """Places counted from the start of each sequence, and on through padding."""
    place_T = torch.arange(sequences_BT.shape[1])
    starts_BT = torch.ones_like(sequences_BT, dtype=torch.bool)
    starts_BT[:, 1:] = (sequences_BT[:, 1:] != sequences_BT[:, :-1]) & (sequences_BT[:, 1:] >= 0)
    return place_T - torch.where(starts_BT, place_T, 0).cummax(dim=1).values


def _near_fence(example: Example) -> Sequence[int]:
    return example.near_fence[1:] if example.near_fence is not None else [0] * _width(example)

"""From what was sampled to the loss: the same ids in the same order, and nothing else is trained on."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cellar_trainer.learning.learner import sampled_tokens
from cellar_trainer.learning.model import control_tokens, hidden_states, output_weight
from cellar_trainer.learning.objectives import ObjectiveOptions, policy_objective
from cellar_trainer.learning.objectives.normalisation import loss_weights, step_totals
from cellar_trainer.learning.packing import Batch, Example, Layout, pack
from cellar_trainer.types import Segment, SegmentKind, Task, Trajectory
from tests.tiny_model import TRIGGER, tiny_model, tiny_tokenizer

TOKENS = control_tokens(tiny_tokenizer(), TRIGGER)
CPU = torch.device("cpu")
OBJECTIVES: list[dict[str, Any]] = [
    {"name": "grpo"},
    {"name": "dapo"},
    {"name": "gspo"},
    {"name": "ih_grpo"},
    {"name": "ih_grpo", "base": "dr_grpo", "f": "second", "mask": "fence", "respect_clip": False},
]

token_ids = st.one_of(st.integers(0, 255), st.just(TOKENS.trigger_id), st.just(TOKENS.pad_id))
logprobs = st.floats(-12, 0, width=32)


@st.composite
def segments(draw: st.DrawFn, kind: SegmentKind, shortest: int, longest: int) -> Segment:
    ids = tuple(draw(st.lists(token_ids, min_size=shortest, max_size=longest)))
    if kind is not SegmentKind.SAMPLED:
        return Segment(kind, ids)
    own, triggers = (tuple(draw(st.lists(logprobs, min_size=len(ids), max_size=len(ids)))) for _ in range(2))
    return Segment(kind, ids, own, triggers, (0,) * len(ids))


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """A prompt and turns, each a sampled segment and perhaps an observation, perhaps of no token."""
    found = [draw(segments(SegmentKind.PROMPT, 1, 4))]
    for _ in range(draw(st.integers(1, 3))):
        found.append(draw(segments(SegmentKind.SAMPLED, 1, 5)))
        if draw(st.booleans()):
            found.append(draw(segments(SegmentKind.OBSERVATION, 0, 4)))
    return Trajectory(Task("", "", ""), found)


groups = st.lists(trajectories(), min_size=1, max_size=5)
budgets = st.integers(1, 60)
layouts: st.SearchStrategy[Layout] = st.sampled_from(["packed", "padded"])


def examples(rows: Sequence[Trajectory]) -> list[Example]:
    """With an advantage that tells them apart, some of them negative."""
    return [
        Example(row, (-1.0) ** n * (n + 1), near_fence=[place % 2 for place in range(len(row.token_ids))])
        for n, row in enumerate(rows)
    ]


def cut(rows: Sequence[Trajectory], budget: int = 10_000, layout: Layout = "packed") -> list[Batch]:
    return pack(examples(rows), token_budget=budget, pad_id=TOKENS.pad_id, layout=layout)


@given(rows=groups, budget=budgets, layout=layouts)
def test_sampled_ids_reach_the_loss_unchanged_in_order_and_once(
    rows: list[Trajectory], budget: int, layout: Layout
) -> None:
    reached: dict[float, list[tuple[int, float, float]]] = defaultdict(list)
    for batch in cut(rows, budget, layout):
        tokens = sampled_tokens(batch, CPU)
        values = (tokens.advantages_N, tokens.targets_N, tokens.old_logprobs_N, tokens.old_trigger_logprobs_N)
        for advantage, *token in zip(*(value.tolist() for value in values), strict=True):
            reached[advantage].append(tuple(token))

    assert reached == {
        example.advantage: [
            token
            for segment in example.trajectory.segments
            if segment.kind is SegmentKind.SAMPLED
            for token in zip(segment.token_ids, segment.logprobs, segment.trigger_logprobs, strict=True)
        ]
        for example in examples(rows)
    }


@given(rows=groups, budget=budgets, layout=layouts)
def test_a_token_is_predicted_from_its_own_trajectorys_tokens_and_all_of_them(
    rows: list[Trajectory], budget: int, layout: Layout
) -> None:
    known = {example.advantage: example.trajectory.token_ids for example in examples(rows)}
    for batch in cut(rows, budget, layout):
        for row, place in batch.loss_mask_BT.nonzero().tolist():
            count = int(batch.positions_BT[row, place]) + 1
            own = batch.inputs_BT[row, place + 1 - count : place + 1].tolist()
            ids = known[float(batch.advantages_BT[row, place])]

            assert [*own, int(batch.targets_BT[row, place])] == ids[: count + 1]
            assert batch.positions_BT[row, place + 1 - count : place + 1].tolist() == list(range(count))


@pytest.mark.parametrize("given_", OBJECTIVES, ids=str)
@settings(deadline=None, max_examples=15)
@given(rows=groups, layout=layouts)
def test_where_the_target_was_not_sampled_the_gradient_is_exactly_zero(
    given_: dict[str, Any], rows: list[Trajectory], layout: Layout
) -> None:
    (batch,) = cut(rows, 10_000, layout)
    hidden_BTD = made_up_states(batch)
    nothing_clipped = {"clip_low": 1 - 1e-12, "clip_high": 1e12, "dual_clip": "none", "importance": "none"}

    loss([batch], ObjectiveOptions.model_validate({**given_, **nothing_clipped}), hidden_BTD).backward()

    assert hidden_BTD.grad is not None
    assert torch.equal((hidden_BTD.grad != 0).any(-1), batch.loss_mask_BT.bool())


@pytest.mark.parametrize("given_", OBJECTIVES, ids=str)
@settings(deadline=None, max_examples=15)
@given(rows=groups, data=st.data())
def test_what_an_observation_says_only_matters_as_context(
    given_: dict[str, Any], rows: list[Trajectory], data: st.DataObject
) -> None:
    options = ObjectiveOptions.model_validate(given_)
    found = []
    for trajectory_rows in (rows, [other_observations(row, data) for row in rows]):
        (batch,) = cut(trajectory_rows)
        hidden_BTD = made_up_states(batch)  # whatever the context
        value = loss([batch], options, hidden_BTD)
        found.append((value, *torch.autograd.grad(value, (hidden_BTD, output_weight(model())))))

    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("given_", OBJECTIVES, ids=str)
@settings(deadline=None, max_examples=5)
@given(rows=st.lists(trajectories(), min_size=2, max_size=5), budget=budgets)
def test_padded_packed_and_one_by_one_have_the_same_loss_and_gradient(
    given_: dict[str, Any], rows: list[Trajectory], budget: int
) -> None:
    options = ObjectiveOptions.model_validate(given_)
    found = []
    for batches in (cut(rows, layout="padded"), cut(rows), cut(rows, budget), cut(rows, 1)):
        value = loss(batches, options)
        found.append((value, *torch.autograd.grad(value, list(model().parameters()))))

    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-8, atol=1e-10)


def loss(batches: Sequence[Batch], options: ObjectiveOptions, hidden_BTD: Tensor | None = None) -> Tensor:
    """Of an optimiser step, by the model's hidden states or those of its one batch that are given."""
    totals = step_totals((batch.loss_mask_BT, batch.sequences_BT) for batch in batches)
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        states_BTD = hidden_states(model(), batch.inputs_BT, batch.positions_BT) if hidden_BTD is None else hidden_BTD
        mask_BT = batch.loss_mask_BT.bool()
        losses, _ = policy_objective(
            states_BTD[mask_BT], output_weight(model()), sampled_tokens(batch, CPU), TOKENS.trigger_id, options
        )
        weights_BT = loss_weights(batch.loss_mask_BT, batch.sequences_BT, totals, options)
        total = total + (weights_BT[mask_BT] * (losses.policy_N + losses.hierarchical_N)).sum()
    return total


def made_up_states(batch: Batch) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    shape = (*batch.inputs_BT.shape, model().config.hidden_size)
    return torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()


def other_observations(trajectory: Trajectory, data: st.DataObject) -> Trajectory:
    """Of the same lengths."""
    changed = [
        replace(s, token_ids=tuple(data.draw(token_ids) for _ in s.token_ids))
        if s.kind is SegmentKind.OBSERVATION
        else s
        for s in trajectory.segments
    ]
    return Trajectory(trajectory.task, changed)


@cache
def model() -> Any:
    return tiny_model().double()

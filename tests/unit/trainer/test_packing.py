import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellar_trainer.learning.packing import Batch, Example, Layout, pack
from cellar_trainer.types import Segment, SegmentKind, Task, Trajectory

TASK = Task("t", "1+1", "2")
PAD = 99


def sampled(*token_ids: int) -> Segment:
    logprobs = tuple(-float(t) for t in token_ids)
    return Segment(SegmentKind.SAMPLED, token_ids, logprobs, tuple(x / 2 for x in logprobs), (0,) * len(token_ids))


def trajectory(*parts: Segment) -> Trajectory:
    return Trajectory(TASK, list(parts))


def prompt(*token_ids: int) -> Segment:
    return Segment(SegmentKind.PROMPT, token_ids)


def observation(*token_ids: int) -> Segment:
    return Segment(SegmentKind.OBSERVATION, token_ids)


def packed(
    rows: list[Trajectory], advantages: list[float], *, token_budget: int, layout: Layout = "packed"
) -> list[Batch]:
    examples = [Example(row, advantage) for row, advantage in zip(rows, advantages, strict=True)]
    return pack(examples, token_budget=token_budget, pad_id=PAD, layout=layout)


def test_a_short_sequence_fills_the_room_behind_a_longer_one_by_hand() -> None:
    long = trajectory(prompt(1), sampled(2, 3), observation(4), sampled(5))
    middle, short = trajectory(prompt(6, 7), sampled(8)), trajectory(prompt(9), sampled(10))

    (batch,) = packed([short, long, middle], [0.5, -2.0, 3.0], token_budget=8)

    assert batch.inputs_BT.tolist() == [[1, 2, 3, 4], [6, 7, 9, PAD]]
    assert batch.targets_BT.tolist() == [[2, 3, 4, 5], [7, 8, 10, PAD]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert batch.sequences_BT.tolist() == [[0, 0, 0, 0], [1, 1, 2, -1]]
    assert batch.loss_mask_BT.tolist() == [[1, 1, 0, 1], [0, 1, 1, 0]]
    assert batch.logprobs_BT.tolist() == [[-2, -3, 0, -5], [0, -8, -10, 0]]
    assert batch.trigger_logprobs_BT.tolist() == [[-1, -1.5, 0, -2.5], [0, -4, -5, 0]]
    assert batch.advantages_BT.tolist() == [[-2, -2, 0, -2], [0, 3, 0.5, 0]]


def test_two_padded_rows_by_hand() -> None:
    long, short = trajectory(prompt(1), sampled(2, 3), observation(4), sampled(5)), trajectory(prompt(6, 7), sampled(8))

    (batch,) = packed([short, long], [0.5, -2.0], token_budget=8, layout="padded")

    assert batch.inputs_BT.tolist() == [[1, 2, 3, 4], [6, 7, PAD, PAD]]
    assert batch.targets_BT.tolist() == [[2, 3, 4, 5], [7, 8, PAD, PAD]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3]] * 2, "no step but 1: plainly causal"
    assert batch.sequences_BT.tolist() == [[0, 0, 0, 0], [1, 1, -1, -1]]
    assert batch.loss_mask_BT.tolist() == [[1, 1, 0, 1], [0, 1, 0, 0]]
    assert batch.logprobs_BT.tolist() == [[-2, -3, 0, -5], [0, -8, 0, 0]]
    assert batch.trigger_logprobs_BT.tolist() == [[-1, -1.5, 0, -2.5], [0, -4, 0, 0]]
    assert batch.advantages_BT.tolist() == [[-2, -2, 0, -2], [0, 0.5, 0, 0]]
    assert batch.loss_mask_BT.dtype == torch.float32


def test_rows_of_similar_length_share_a_batch_within_the_budget() -> None:
    rows = [trajectory(prompt(1), sampled(*range(n))) for n in (2, 9, 3, 8)]

    shapes = [tuple(batch.inputs_BT.shape) for batch in packed(rows, [1.0] * 4, token_budget=18, layout="padded")]

    assert shapes == [(2, 9), (2, 3)]


def test_packed_rows_are_fewer() -> None:
    rows = [trajectory(prompt(1), sampled(*range(n))) for n in (2, 9, 3, 4)]

    shapes = [tuple(batch.inputs_BT.shape) for batch in packed(rows, [1.0] * 4, token_budget=18)]

    assert shapes == [(2, 9)]


def test_a_row_longer_than_the_budget_has_a_batch_of_its_own() -> None:
    rows = [trajectory(prompt(1), sampled(*range(n))) for n in (20, 2)]

    shapes = [tuple(batch.inputs_BT.shape) for batch in packed(rows, [1.0] * 2, token_budget=4)]

    assert shapes == [(1, 20), (1, 2)]


def test_a_trajectory_without_sampled_tokens_is_left_out() -> None:
    assert packed([trajectory(prompt(1, 2))], [1.0], token_budget=4) == []


def test_a_sampled_token_that_nothing_predicts_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompt"):
        packed([trajectory(sampled(1))], [1.0], token_budget=4)


@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=8),
    st.integers(1, 40),
    st.sampled_from(["packed", "padded"]),
)
def test_every_sampled_token_appears_exactly_once_and_no_batch_is_over_budget(
    shapes: list[list[int]], budget: int, layout: Layout
) -> None:
    serial = iter(range(100, 10_000))  # no two sampled tokens are equal, so each can be told
    rows = [
        trajectory(
            prompt(1), *(part for n in turns for part in (sampled(*[next(serial) for _ in range(n)]), observation(2)))
        )
        for turns in shapes
    ]
    batches = packed(rows, [float(i) for i in range(len(rows))], token_budget=budget, layout=layout)

    trained = [t for b in batches for t in b.targets_BT[b.loss_mask_BT.bool()].tolist()]
    assert sorted(trained) == sorted(
        t for row in rows for s in row.segments if s.kind == "sampled" for t in s.token_ids
    )
    for b in batches:
        assert b.inputs_BT.numel() <= budget or len(b.inputs_BT) == 1
        assert torch.equal(b.logprobs_BT, -b.targets_BT * b.loss_mask_BT)
        assert _whole_sequences(b) <= {tuple(row.token_ids[1:]) for row in rows}
        assert layout == "packed" or all(len(row.unique()) <= 2 for row in b.sequences_BT)
    again = packed(rows, [float(i) for i in range(len(rows))], token_budget=budget, layout=layout)
    assert repr(batches) == repr(again)


def _whole_sequences(batch: Batch) -> set[tuple[int, ...]]:
    """The targets of each sequence, whose positions have to count from 0 without a gap."""
    found = set()
    for number in range(int(batch.sequences_BT.max()) + 1):
        own_BT = batch.sequences_BT == number
        assert batch.positions_BT[own_BT].tolist() == list(range(int(own_BT.sum())))
        assert own_BT.any(dim=1).sum() == 1, "a sequence lies within one row"
        found.add(tuple(batch.targets_BT[own_BT].tolist()))
    return found


def test_advantages_masks_and_fences_may_be_per_token() -> None:
    row = trajectory(prompt(1), sampled(2, 3), observation(4), sampled(5))
    example = Example(row, [9.0, 0.5, -1.0, 9.0, 2.0], trained=[1, 1, 0, 1, 1], near_fence=[0, 0, 1, 0, 1])

    (batch,) = pack([example], token_budget=8, pad_id=PAD)

    assert batch.loss_mask_BT.tolist() == [[1, 0, 0, 1]], "an observation is not trained on, whatever is asked for"
    assert batch.advantages_BT.tolist() == [[0.5, 0, 0, 2.0]]
    assert batch.logprobs_BT.tolist() == [[-2, 0, 0, -5]]
    assert batch.near_fence_BT.tolist() == [[False, True, False, True]]


def test_a_row_of_which_nothing_is_trained_on_is_left_out() -> None:
    row = trajectory(prompt(1), sampled(2, 3))
    assert pack([Example(row, 1.0, trained=[0, 0, 0])], token_budget=4, pad_id=PAD) == []


def test_per_token_values_of_another_length_are_refused() -> None:
    row = trajectory(prompt(1), sampled(2, 3))
    for example in (Example(row, [1.0]), Example(row, 1.0, trained=[1])):
        with pytest.raises(ValueError, match="shorter|1 advantages"):
            pack([example], token_budget=4, pad_id=PAD)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellar_trainer.learning.objectives.normalisation import StepTotals, loss_weights, step_totals
from cellar_trainer.learning.objectives.options import ObjectiveOptions

MASK_BT = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
"""Three tokens, one token, and a row of which nothing is trained on."""
ROWS_BT = torch.arange(3)[:, None].expand(3, 4)
"""Every row a sequence of its own."""


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        # 4 tokens
        ({"loss_mean": "token"}, [[1 / 4, 0, 1 / 4, 1 / 4], [0, 1 / 4, 0, 0], [0] * 4]),
        # 2 sequences, of 3 tokens and of 1
        ({"loss_mean": "sequence"}, [[1 / 6, 0, 1 / 6, 1 / 6], [0, 1 / 2, 0, 0], [0] * 4]),
        # 2 sequences, each as if of 10 tokens
        ({"loss_mean": "constant", "constant_length": 10}, [[0.05, 0, 0.05, 0.05], [0, 0.05, 0, 0], [0] * 4]),
    ],
)
def test_the_three_means_by_hand(options: dict[str, object], weights: list[list[float]]) -> None:
    totals = step_totals([(MASK_BT, ROWS_BT)])

    weights_BT = loss_weights(MASK_BT, ROWS_BT, totals, ObjectiveOptions.model_validate(options))

    assert totals == StepTotals(tokens=4, sequences=2)
    torch.testing.assert_close(weights_BT, torch.tensor(weights))


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    cuts=st.sets(st.integers(1, 7)),
    mean=st.sampled_from(["token", "sequence", "constant"]),
)
def test_how_a_step_is_cut_into_batches_changes_no_weight(lengths: list[int], cuts: set[int], mean: str) -> None:
    mask_BT = (torch.arange(6) < torch.tensor(lengths)[:, None]).float()
    rows_BT = torch.arange(len(lengths))[:, None].expand_as(mask_BT)
    options = ObjectiveOptions.model_validate({"loss_mean": mean})
    if not mask_BT.any():
        return
    whole_BT = loss_weights(mask_BT, rows_BT, step_totals([(mask_BT, rows_BT)]), options)

    places = sorted(cut for cut in cuts if cut < len(lengths))
    parts = zip(mask_BT.tensor_split(places), rows_BT.tensor_split(places), strict=True)
    batches = [(mask, rows - rows[0]) for mask, rows in parts]
    totals = step_totals(batches)

    assert torch.equal(torch.cat([loss_weights(mask, rows, totals, options) for mask, rows in batches]), whole_BT)
    if mean != "constant":
        assert whole_BT.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("mean", ["token", "sequence", "constant"])
def test_sequences_that_share_a_row_weigh_what_they_weigh_in_rows_of_their_own(mean: str) -> None:
    options = ObjectiveOptions.model_validate({"loss_mean": mean})
    shared_BT = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
    sequences_BT = torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1]])
    apart_BT = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    totals = step_totals([(shared_BT, sequences_BT)])

    weights_BT = loss_weights(shared_BT, sequences_BT, totals, options)

    assert totals == StepTotals(tokens=4, sequences=2)
    assert torch.equal(weights_BT.view(2, 4), loss_weights(apart_BT, ROWS_BT[:2], totals, options))


def test_totals_of_the_parts_of_a_step_add_up() -> None:
    parts = [step_totals([(MASK_BT[:1], ROWS_BT[:1])]), step_totals([(MASK_BT[1:], ROWS_BT[:2])])]
    assert StepTotals(*(sum(values) for values in zip(*parts, strict=True))) == step_totals([(MASK_BT, ROWS_BT)])

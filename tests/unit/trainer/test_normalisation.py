import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellar_trainer.objectives.normalisation import StepTotals, loss_weights, step_totals
from cellar_trainer.objectives.options import ObjectiveOptions

MASK_BT = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
"""Three tokens, one token, and a row of which nothing is trained on."""


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
    totals = step_totals([MASK_BT])

    weights_BT = loss_weights(MASK_BT, totals, ObjectiveOptions.model_validate(options))

    assert totals == StepTotals(tokens=4, sequences=2)
    torch.testing.assert_close(weights_BT, torch.tensor(weights))


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    cuts=st.sets(st.integers(1, 7)),
    mean=st.sampled_from(["token", "sequence", "constant"]),
)
def test_how_a_step_is_cut_into_batches_changes_no_weight(lengths: list[int], cuts: set[int], mean: str) -> None:
    mask_BT = (torch.arange(6) < torch.tensor(lengths)[:, None]).float()
    options = ObjectiveOptions.model_validate({"loss_mean": mean})
    if not mask_BT.any():
        return
    whole_BT = loss_weights(mask_BT, step_totals([mask_BT]), options)

    parts = [part for part in mask_BT.tensor_split(sorted(cut for cut in cuts if cut < len(lengths))) if len(part)]
    totals = step_totals(parts)

    assert torch.equal(torch.cat([loss_weights(part, totals, options) for part in parts]), whole_BT)
    if mean != "constant":
        assert whole_BT.sum().item() == pytest.approx(1)


def test_totals_of_the_parts_of_a_step_add_up() -> None:
    parts = [step_totals([MASK_BT[:1]]), step_totals([MASK_BT[1:]])]
    assert StepTotals(*(sum(values) for values in zip(*parts, strict=True))) == step_totals([MASK_BT])

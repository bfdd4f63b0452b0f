import math

import pytest
import torch
from torch import Tensor

from cellar_trainer.learning.head import TokenScalars
from cellar_trainer.learning.objectives.clip import PolicyLoss, clipped_policy_loss, policy_measures
from cellar_trainer.learning.objectives.options import ObjectiveOptions
from cellar_trainer.learning.objectives.tokens import (
    SampledTokens,
    TokenTerms,
    hierarchical_coefficient,
    implicit_terms,
)

DAPO = ObjectiveOptions(name="dapo", importance="none")
GRPO = ObjectiveOptions(name="grpo", importance="none")
GSPO = ObjectiveOptions(name="gspo", importance="none")


def sampled(old: Tensor, advantages: list[float], sequences: list[int] | None = None) -> SampledTokens:
    return SampledTokens(
        targets_N=torch.ones(len(old), dtype=torch.long),
        old_logprobs_N=old,
        old_trigger_logprobs_N=torch.full_like(old, math.log(0.5)),
        advantages_N=torch.tensor(advantages),
        sequences_N=torch.tensor(sequences or [0] * len(old)),
        near_fence_N=torch.zeros(len(old), dtype=torch.bool),
    )


def terms_with(
    ratios: list[float], advantages: list[float], sequences: list[int] | None = None
) -> tuple[TokenTerms, Tensor]:
    """Terms with these ratios to a sampler for which every token had probability 1/2, and the leaf behind them."""
    leaf = torch.tensor(ratios).log().requires_grad_()
    half = torch.full((len(ratios),), math.log(0.5))
    terms = TokenTerms(
        sampled(half, advantages, sequences),
        is_trigger_N=torch.zeros(len(ratios), dtype=torch.bool),
        gate_logit_N=torch.zeros(len(ratios)),
        logprobs_N=leaf + half,
        trigger_logprobs_N=half,
    )
    return terms, leaf


def loss_and_gradient(
    ratios: list[float], advantages: list[float], options: ObjectiveOptions, sequences: list[int] | None = None
) -> tuple[PolicyLoss, list[float]]:
    terms, leaf = terms_with(ratios, advantages, sequences)
    policy = clipped_policy_loss(terms, options)
    policy.loss_N.sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, -policy.coefficient_N, msg="the coefficient is the gradient's")
    return policy, leaf.grad.tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.2, 2.0, -2.4, -2.4),
        (1.5, 2.0, -2.56, 0.0),  # clipped at 1.28
        (0.5, 2.0, -1.0, -1.0),  # a low ratio is no reason to stop raising it
        (1.0, -2.0, 2.0, 2.0),
        (0.5, -2.0, 1.6, 0.0),  # clipped at 0.8
        (2.0, -2.0, 4.0, 4.0),
        (5.0, -2.0, 6.0, 0.0),  # dual clip: at most 3 |A|
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_dapo_clips_higher_above_and_twice_below_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    policy, gradients = loss_and_gradient([ratio], [advantage], DAPO)

    assert policy.loss_N.tolist() == pytest.approx([loss])
    assert gradients == pytest.approx([gradient])


@pytest.mark.parametrize(
    ("ratio", "gradient"),
    [(2.5, 4.0), (3.5, 0.0), (50.0, 0.0)],  # truncated to the cap of 2; beyond 3 the dual clip lets nothing through
)
def test_the_dual_clip_acts_although_the_cap_is_below_it_as_by_default(ratio: float, gradient: float) -> None:
    for options in (ObjectiveOptions(name="dapo"), ObjectiveOptions.preset("exact")):
        _, gradients = loss_and_gradient([ratio], [-2.0], options)
        assert gradients == pytest.approx([gradient])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.25, 2.0, -2.4, 0.0),  # clipped at 1.2, where DAPO goes on
        (0.5, -2.0, 1.6, 0.0),
        (5.0, -2.0, 10.0, 10.0),  # no dual clip
        (5.0, 0.0, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "lampo"])
def test_grpo_clips_alike_on_both_sides_and_once_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float, name: str
) -> None:
    options = ObjectiveOptions.model_validate({"name": name, "importance": "none"})

    policy, gradients = loss_and_gradient([ratio], [advantage], options)

    assert policy.loss_N.tolist() == pytest.approx([loss])
    assert gradients == pytest.approx([gradient])


def test_gspo_clips_whole_sequences_by_their_geometric_mean_by_hand() -> None:
    # Sequence 0 has the ratios 2 and 1/2, of mean 1: no token is clipped, though by itself each would be.
    # Sequence 1 has 1.21 and 1, of mean 1.1: beyond 1 + 4e-4, so neither token has a gradient.
    policy, gradients = loss_and_gradient([2.0, 1.21, 0.5, 1.0], [2.0] * 4, GSPO, [0, 1, 0, 1])

    assert policy.ratio_N.tolist() == pytest.approx([1.0, 1.1, 1.0, 1.1])
    assert policy.loss_N.tolist() == pytest.approx([-2.0, -2 * 1.0004, -2.0, -2 * 1.0004])
    assert gradients == pytest.approx([-2.0, 0.0, -2.0, 0.0])


def test_gspo_gives_each_token_its_own_advantage_times_its_sequences_ratio() -> None:
    # Ratios 1.21 and 1, of mean 1.1; for A < 0 the loss is -A s above the range, with its gradient.
    policy, gradients = loss_and_gradient([1.21, 1.0], [-1.0, -3.0], GSPO, [0, 0])

    assert policy.loss_N.tolist() == pytest.approx([1.1, 3.3])
    assert gradients == pytest.approx([1.1, 3.3])


def test_gspos_gradient_is_that_of_its_sequence_loss() -> None:
    ratios, old = [1.5, 0.7, 0.96], torch.full((3,), math.log(0.5))
    _, gradients = loss_and_gradient(ratios, [-2.0] * 3, GSPO)

    leaf = torch.tensor(ratios).log().requires_grad_()
    sequence_ratio = ((leaf + old) - old).mean().exp()
    (2.0 * sequence_ratio).backward()

    assert sequence_ratio > 1 - GSPO.clip_low
    assert leaf.grad is not None
    assert [g / 3 for g in gradients] == pytest.approx(leaf.grad.tolist())


def test_truncation_keeps_the_gradient_with_the_weight_of_the_cap() -> None:
    options = ObjectiveOptions(name="dapo", importance="truncate", importance_cap=2.0, dual_clip="none")

    policy, gradients = loss_and_gradient([1.5, 2.5, 100.0], [-1.0, -1.0, -1.0], options)

    assert policy.loss_N.tolist() == pytest.approx([1.5, 2.0, 2.0])
    assert gradients == pytest.approx([1.5, 2.0, 2.0])


def test_masking_drops_tokens_beyond_the_cap_on_both_sides() -> None:
    options = ObjectiveOptions(name="dapo", importance="mask", importance_cap=2.0)

    policy, gradients = loss_and_gradient([0.4, 0.6, 1.9, 2.1], [1.0, 1.0, -1.0, -1.0], options)

    assert policy.loss_N.tolist() == pytest.approx([0.0, -0.6, 1.9, 0.0])
    assert gradients == pytest.approx([0.0, -0.6, 1.9, 0.0])
    assert gradients[0] == gradients[3] == 0.0


def test_a_token_the_sampler_thought_impossible_does_not_overflow() -> None:
    logits = torch.zeros(1, requires_grad=True)
    zero = torch.zeros(1)
    terms = implicit_terms(TokenScalars(logits, zero, zero, zero), sampled(torch.tensor([-1e4]), [-1.0]), 0)

    loss = clipped_policy_loss(terms, DAPO).loss_N
    loss.sum().backward()

    assert loss.tolist() == [3.0]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_coefficient_of_an_improbable_trigger_is_small_but_not_zero() -> None:
    gate_N = torch.tensor([25.0, -25.0])  # float32 knows no number between 1 - 6e-8 and 1

    coefficient_N = hierarchical_coefficient(gate_N, torch.tensor([False, True]))

    assert coefficient_N.tolist() == pytest.approx([math.exp(-25), -math.exp(-25)], rel=1e-5)


def test_measures_by_hand() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    # Vocabulary of the trigger (logit 0) and two others that share log Z = 0: the trigger has 1/2, the others 1/4 each.
    zero = torch.zeros(3)
    scalars = TokenScalars(torch.tensor([0.0, -math.log(2), -math.log(2)]), zero, zero, torch.full((3,), 0.5))
    tokens = SampledTokens(
        targets_N=torch.tensor([9, 1, 1]),
        old_logprobs_N=torch.tensor([half + 0.3, quarter, quarter - math.log(2)]),
        old_trigger_logprobs_N=torch.tensor([half, half, math.log(0.2)]),
        advantages_N=torch.tensor([1.0, 0.0, 1.0]),
        sequences_N=torch.zeros(3, dtype=torch.long),
        near_fence_N=torch.zeros(3, dtype=torch.bool),
    )
    terms = implicit_terms(scalars, tokens, 9)

    measures = policy_measures(terms, clipped_policy_loss(terms, DAPO))

    assert {name: float(measure) for name, measure in measures.items()} == pytest.approx(
        {
            "hierarchical_coefficient": 0.5,
            "clip_fraction": 1 / 3,  # the last ratio is 2; without an advantage nothing is clipped
            "entropy": -(half + 2 * quarter) / 3,
            "mismatch": (0.3 + math.log(2)) / 3,
            "mismatch_trigger": 0.3,
            "mismatch_gate": 0.1,
            "ratio_max": 2.0,
        },
        rel=1e-5,
    )


def test_measures_without_any_trigger_are_numbers() -> None:
    terms, _ = terms_with([1.0, 1.0], [1.0, -1.0])

    measures = policy_measures(terms, clipped_policy_loss(terms, DAPO))

    assert all(math.isfinite(float(measure)) for measure in measures.values())
    assert float(measures["mismatch_trigger"]) == 0

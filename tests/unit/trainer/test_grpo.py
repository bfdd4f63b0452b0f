import math

import pytest
import torch
from torch import Tensor

from cellar_trainer.head import TokenScalars
from cellar_trainer.objectives.base import ObjectiveOptions, TokenTerms, hierarchical_coefficient, token_terms
from cellar_trainer.objectives.grpo import PolicyLoss, clipped_policy_loss, policy_metrics

PLAIN = ObjectiveOptions(name="grpo", importance="none")


def terms_with(ratios: list[float], advantages: list[float]) -> tuple[TokenTerms, Tensor]:
    """Terms with these ratios to a sampler for which every token had probability 1/2, and the leaf behind them."""
    leaf = torch.tensor(ratios).log().requires_grad_()
    logits = leaf - math.log(2)  # log-probabilities, once the rest of the vocabulary makes up the total of 1
    rest = torch.log1p(-logits.detach().exp().clamp(max=1 - 1e-6))
    scalars = TokenScalars(logits, rest, rest, torch.zeros_like(rest))
    old = torch.full_like(rest, -math.log(2))
    terms = TokenTerms(
        scalars, logits, rest, old, rest, torch.tensor(advantages), torch.zeros(len(ratios), dtype=torch.bool)
    )
    return terms, leaf


def loss_and_gradient(
    ratios: list[float], advantages: list[float], options: ObjectiveOptions
) -> tuple[PolicyLoss, list[float]]:
    terms, leaf = terms_with(ratios, advantages)
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
def test_clip_and_dual_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    policy, gradients = loss_and_gradient([ratio], [advantage], PLAIN)

    assert policy.loss_N.tolist() == pytest.approx([loss])
    assert gradients == pytest.approx([gradient])


def test_truncation_keeps_the_gradient_with_the_weight_of_the_cap() -> None:
    options = ObjectiveOptions(name="grpo", importance="truncate", importance_cap=2.0)

    policy, gradients = loss_and_gradient([1.5, 2.5, 100.0], [-1.0, -1.0, -1.0], options)

    assert policy.loss_N.tolist() == pytest.approx([1.5, 2.0, 2.0])
    assert gradients == pytest.approx([1.5, 2.0, 2.0])


def test_masking_drops_tokens_beyond_the_cap_on_both_sides() -> None:
    options = ObjectiveOptions(name="grpo", importance="mask", importance_cap=2.0)

    policy, gradients = loss_and_gradient([0.4, 0.6, 1.9, 2.1], [1.0, 1.0, -1.0, -1.0], options)

    assert policy.loss_N.tolist() == pytest.approx([0.0, -0.6, 1.9, 0.0])
    assert gradients == pytest.approx([0.0, -0.6, 1.9, 0.0])
    assert gradients[0] == gradients[3] == 0.0


def test_a_token_the_sampler_thought_impossible_does_not_overflow() -> None:
    terms, leaf = terms_with([1.0], [-1.0])
    terms = token_terms(
        terms.scalars, torch.tensor([1]), torch.tensor([-1e4]), torch.tensor([-1e4]), torch.tensor([-1.0]), 0
    )

    loss = clipped_policy_loss(terms, PLAIN).loss_N
    loss.sum().backward()

    assert loss.tolist() == [3.0]
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_the_coefficient_of_an_improbable_trigger_is_small_but_not_zero() -> None:
    zero = torch.zeros(2)  # float32 knows no number between 1 - 6e-8 and 1
    scalars = TokenScalars(zero, torch.tensor([-25.0, 25.0]), zero, zero)

    coefficient_N = hierarchical_coefficient(scalars, torch.tensor([False, True]))

    assert coefficient_N.tolist() == pytest.approx([math.exp(-25), -math.exp(-25)], rel=1e-5)


def test_metrics_by_hand() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    # Vocabulary of the trigger (logit 0) and two others that share log Z = 0: the trigger has 1/2, the others 1/4 each.
    zero = torch.zeros(3)
    scalars = TokenScalars(torch.tensor([0.0, -math.log(2), -math.log(2)]), zero, zero, torch.full((3,), 0.5))
    terms = token_terms(
        scalars,
        torch.tensor([9, 1, 1]),
        torch.tensor([half + 0.3, quarter, quarter - math.log(2)]),
        torch.tensor([half, half, math.log(0.2)]),
        torch.tensor([1.0, 1.0, 1.0]),
        9,
    )

    metrics = policy_metrics(terms, clipped_policy_loss(terms, PLAIN))

    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "hierarchical_coefficient": 0.5,
            "clip_fraction": 1 / 3,  # the last ratio is 2
            "entropy": -(half + 2 * quarter) / 3,
            "mismatch": (0.3 + math.log(2)) / 3,
            "mismatch_trigger": 0.3,
            "mismatch_gate": 0.1,
            "ratio_max": 2.0,
        },
        rel=1e-5,
    )


def test_metrics_without_any_trigger_are_numbers() -> None:
    terms, _ = terms_with([1.0, 1.0], [1.0, -1.0])

    metrics = policy_metrics(terms, clipped_policy_loss(terms, PLAIN))

    assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
    assert metrics["mismatch_trigger"] == 0

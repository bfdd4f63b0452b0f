"""The oracle is held against what it stands for: an explicit gate and a softmax below it, stepped by autograd."""

from itertools import pairwise
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cellar_trainer.learning.objectives.ih_grpo import hierarchical_loss
from cellar_trainer.learning.objectives.options import Correction

INF = float("inf")
CORRECTIONS = get_args(Correction)


def split_logits(logits_NV: Tensor, trigger: int) -> tuple[Tensor, Tensor]:
    """The explicit policy that an implicit one stands for: logit of going on, and logits of the ordinary tokens."""
    low_NV = torch.cat([logits_NV[:, :trigger], logits_NV[:, trigger + 1 :]], -1)
    return low_NV.logsumexp(-1) - logits_NV[:, trigger], low_NV


def explicit_step(
    logits_NV: Tensor, ids_N: Tensor, trigger: int, advantages_N: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """Gate logit and conditional softmax after one gradient step on the explicit policy's own parameters."""
    gate_N, low_NV = (x.detach().requires_grad_() for x in split_logits(logits_NV, trigger))
    low_ids_N = torch.where(ids_N > trigger, ids_N - 1, ids_N).clamp(max=low_NV.shape[-1] - 1)
    chosen_N = low_NV.log_softmax(-1).gather(-1, low_ids_N[:, None])[:, 0]
    logprobs_N = torch.where(ids_N == trigger, F.logsigmoid(-gate_N), F.logsigmoid(gate_N) + chosen_N)
    g_gate_N, g_low_NV = torch.autograd.grad(-(advantages_N * logprobs_N).sum(), (gate_N, low_NV))
    return (gate_N - eta * g_gate_N).detach(), (low_NV - eta * g_low_NV).detach().softmax(-1)


def implicit_step(
    logits_NV: Tensor, ids_N: Tensor, trigger: int, advantages_N: Tensor, eta: float, f: Correction = "exact"
) -> tuple[Tensor, Tensor]:
    logits_NV = logits_NV.detach().requires_grad_()
    hierarchical_loss(logits_NV, ids_N, trigger, advantages_N, f=f, eta=eta).sum().backward()
    assert logits_NV.grad is not None
    gate_N, low_NV = split_logits(logits_NV.detach() - eta * logits_NV.grad, trigger)
    return gate_N, low_NV.softmax(-1)


def assert_same_step(
    logits_NV: Tensor, ids_N: Tensor, trigger: int, advantages_N: Tensor, eta: float, *, round_off: float = 1e-13
) -> None:
    gate_N, low_NV = explicit_step(logits_NV, ids_N, trigger, advantages_N, eta)
    our_gate_N, our_low_NV = implicit_step(logits_NV, ids_N, trigger, advantages_N, eta)
    reached = 1 + logits_NV.abs().max().item() + eta * advantages_N.abs().max().item()

    torch.testing.assert_close(our_gate_N, gate_N, rtol=0, atol=round_off * reached)
    torch.testing.assert_close(our_gate_N.sigmoid(), gate_N.sigmoid(), rtol=0, atol=round_off * reached)
    torch.testing.assert_close(our_low_NV, low_NV, rtol=0, atol=round_off * reached)


def state(
    seed: int, vocabulary: int, trigger: int, *, lift: float = 0.0, scale: float = 2.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with the trigger's lifted, tokens of which about half are the trigger, and advantages of both signs."""
    rng = torch.Generator().manual_seed(seed)
    logits_NV = scale * torch.randn(8, vocabulary, generator=rng, dtype=torch.float64)
    logits_NV[:, trigger] += lift
    ids_N = torch.randint(vocabulary, (8,), generator=rng)
    ids_N[::2] = trigger
    return logits_NV, ids_N, 2 * torch.randn(8, generator=rng, dtype=torch.float64)


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(2, 60),
    column=st.floats(0, 1, exclude_max=True),
    eta=st.floats(1e-8, 100),
    lift=st.sampled_from([0.0, 5.0, -5.0, 80.0, -80.0]),
    scale=st.sampled_from([0.0, 1.0, 5.0, 100.0]),
)
def test_one_step_is_the_explicit_policys_step(
    seed: int, vocabulary: int, column: float, eta: float, lift: float, scale: float
) -> None:
    trigger = int(column * vocabulary)
    logits_NV, ids_N, advantages_N = state(seed, vocabulary, trigger, lift=lift, scale=scale)

    assert_same_step(logits_NV, ids_N, trigger, advantages_N, eta)


@pytest.mark.parametrize("sampled", ["trigger", "ordinary"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("lift", [0.0, 80.0, -80.0])
def test_the_step_is_exact_in_each_of_the_four_cases(sampled: str, sign: float, lift: float) -> None:
    logits_NV, ids_N, advantages_N = state(3, 50, 17, lift=lift)
    ids_N = torch.full_like(ids_N, 17) if sampled == "trigger" else torch.arange(8)

    assert_same_step(logits_NV, ids_N, 17, sign * advantages_N.abs(), 0.5)


def test_the_step_is_exact_when_two_tokens_are_all_there_is() -> None:
    for trigger in (0, 1):
        for token in (0, 1):
            logits_NV = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
            assert_same_step(logits_NV, torch.tensor([token]), trigger, torch.tensor([1.5]).double(), 0.7)


# Logits log 4/3 (the trigger), log 3 and 0: Z = 4, gamma = 3/4, q = (3/4, 1/4), p = (1/4, 9/16, 3/16). With A = 2 and
# eta = 1/2 a step is 1.
#   token 2:  Z' = 3 exp(-3/4) + exp(3/4) = 3.534100, f = 2 log(3.534100 / 4) = -0.247671
#             first order   2 (1/4 - 10/16) = -3/4
#             second order  -3/4 + 1/4 * 4 * v = -0.328125, v = 1/4 - 2/16 + 28/64 - (3/8)^2 = 0.421875
#             L = -2 log 3/16 + 2 * 1/4 log 4 - f log 4/3,  dL = (2 * 1/4 - f, 2 * 3/4, -2 * 3/4)
#   trigger:  L = -2 log 1/4 - 2 * 3/4 log 4 = log 2,  dL = (-2 * 3/4, 0, 0)
BY_HAND: list[tuple[Correction, int, float, list[float]]] = [
    ("none", 2, 4.041100, [0.5, 1.5, -1.5]),
    ("first", 2, 4.256862, [1.25, 1.5, -1.5]),
    ("second", 2, 4.135496, [0.828125, 1.5, -1.5]),
    ("exact", 2, 4.112351, [0.747671, 1.5, -1.5]),
    ("exact", 0, 0.693147, [-1.5, 0.0, 0.0]),
]


@pytest.mark.parametrize(("f", "token", "loss", "gradient"), BY_HAND)
def test_loss_and_gradient_by_hand(f: Correction, token: int, loss: float, gradient: list[float]) -> None:
    logits = torch.tensor([[4 / 3, 3.0, 1.0]], dtype=torch.float64).log().requires_grad_()

    loss_N = hierarchical_loss(logits, torch.tensor([token]), 0, torch.tensor([2.0]), f=f, eta=0.5)
    loss_N.sum().backward()

    assert loss_N.item() == pytest.approx(loss, abs=1e-5)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(gradient, abs=1e-5)


def order_of_error(f: Correction) -> list[float]:
    """Decimal digits of gate logit gained each time the step gets ten times smaller."""
    logits_NV, _, advantages_N = state(11, 50, 20, scale=1.5)
    ids_N = torch.arange(8)
    errors = []
    for eta in (1e-1, 1e-2, 1e-3):
        gate_N, _ = explicit_step(logits_NV, ids_N, 20, advantages_N, eta)
        our_gate_N, _ = implicit_step(logits_NV, ids_N, 20, advantages_N, eta, f)
        errors.append((our_gate_N - gate_N).abs().max().log10().item())
    return [larger - smaller for larger, smaller in pairwise(errors)]


@pytest.mark.parametrize(("f", "order"), [("none", 1), ("first", 2), ("second", 3)])
def test_each_order_of_f_gains_an_order_of_accuracy(f: Correction, order: int) -> None:
    assert order_of_error(f) == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize("f", CORRECTIONS)
def test_a_weight_of_zero_is_the_policy_gradient_bit_for_bit(f: Correction) -> None:
    logits_NV, ids_N, advantages_N = state(5, 12, 4)
    advantages_N[:2] = 0.0
    ours, plain = (logits_NV.clone().requires_grad_() for _ in range(2))

    hierarchical_loss(ours, ids_N, 4, advantages_N, f=f, weight=0.0).sum().backward()
    (-advantages_N * plain.log_softmax(-1).gather(-1, ids_N[:, None])[:, 0]).sum().backward()

    assert ours.grad is not None
    assert plain.grad is not None
    assert torch.equal(ours.grad.view(torch.int64), plain.grad.view(torch.int64))


def test_weight_scales_what_is_added_to_the_policy_gradient() -> None:
    logits_NV, ids_N, advantages_N = state(5, 12, 4)
    none, half, full = (hierarchical_loss(logits_NV, ids_N, 4, advantages_N, weight=w) for w in (0.0, 0.5, 1.0))

    torch.testing.assert_close(half - none, (full - none) / 2)
    assert (full - none).abs().min() > 0


def test_f_moves_only_the_triggers_logit_and_only_where_it_was_not_sampled() -> None:
    logits_NV, ids_N, advantages_N = state(5, 12, 4)
    gradients = []
    corrections: tuple[Correction, ...] = ("none", "exact")
    for f in corrections:
        leaf = logits_NV.clone().requires_grad_()
        hierarchical_loss(leaf, ids_N, 4, advantages_N, f=f).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)

    moved = (gradients[1] - gradients[0]).abs() > 0
    assert moved[:, 4].tolist() == (ids_N != 4).tolist()
    assert not moved[:, :4].any()
    assert not moved[:, 5:].any()


@pytest.mark.parametrize("f", CORRECTIONS)
def test_the_common_level_of_the_logits_changes_the_value_but_not_the_gradient(f: Correction) -> None:
    logits_NV, ids_N, advantages_N = state(5, 12, 4)
    low, high = (logits_NV.clone().requires_grad_(), (logits_NV + 7).requires_grad_())

    low_N, high_N = (hierarchical_loss(leaf, ids_N, 4, advantages_N, f=f) for leaf in (low, high))
    low_N.sum().backward()
    high_N.sum().backward()

    assert low.grad is not None
    assert high.grad is not None
    torch.testing.assert_close(high.grad, low.grad)
    torch.testing.assert_close(high_N - low_N, 7 * low.grad.sum(-1))
    p_N = logits_NV.softmax(-1)[:, 4]
    if f == "none":
        torch.testing.assert_close(high_N - low_N, 7 * advantages_N * ((ids_N != 4).double() - (1 - p_N)))


MASKED_ROWS = {
    "one ordinary column": ([0.3, -INF, 1.0, 2.0], 2),
    "the trigger, another sampled": ([-INF, 0.5, 1.0, 2.0], 2),
    "all but the trigger": ([0.3, -INF, -INF, -INF], 0),
    "all but one ordinary column": ([-INF, -INF, 1.0, -INF], 2),
}


@pytest.mark.parametrize("f", CORRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("row", "token"), MASKED_ROWS.values(), ids=MASKED_ROWS.keys())
def test_masked_columns_give_finite_losses_and_no_gradient_of_their_own(
    row: list[float], token: int, dtype: torch.dtype, f: Correction
) -> None:
    logits = torch.tensor([row], dtype=dtype, requires_grad=True)

    loss = hierarchical_loss(logits, torch.tensor([token]), 0, torch.tensor([-1.5]), f=f, eta=0.3)
    loss.sum().backward()

    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 1:][logits[:, 1:].isneginf()] == 0).all()


def test_a_masked_column_changes_nothing_for_the_others() -> None:
    logits_NV, ids_N, advantages_N = state(9, 6, 2)
    masked_NV = torch.cat([logits_NV, torch.full((8, 1), -INF, dtype=torch.float64)], -1)

    torch.testing.assert_close(
        hierarchical_loss(masked_NV, ids_N, 2, advantages_N), hierarchical_loss(logits_NV, ids_N, 2, advantages_N)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("f", CORRECTIONS)
def test_the_largest_logits_of_a_dtype_do_not_overflow(dtype: torch.dtype, f: Correction) -> None:
    large = 60_000.0  # float16 ends at 65504
    logits = torch.tensor([[large, -large, 0.0], [-large, large, large], [0.0, large, -large]], dtype=dtype)
    logits.requires_grad_()

    loss = hierarchical_loss(logits, torch.tensor([1, 0, 2]), 0, torch.tensor([3.0, -3.0, 3.0]), f=f, eta=10.0)
    loss.sum().backward()

    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_leading_shape_is_kept_and_tokens_are_not_shifted() -> None:
    logits_NV, ids_N, advantages_N = state(2, 10, 3)

    batched = hierarchical_loss(
        logits_NV.view(2, 4, 10), ids_N.view(2, 4), 3, advantages_N.view(2, 4), f="second", eta=0.1
    )

    assert batched.shape == (2, 4)
    torch.testing.assert_close(
        batched.flatten(), hierarchical_loss(logits_NV, ids_N, 3, advantages_N, f="second", eta=0.1)
    )

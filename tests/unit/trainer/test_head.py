import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cellar_trainer.learning.head import (
    TokenScalars,
    exact_f,
    exact_f_from_logits,
    scalars_from_logits,
    sum_q3,
    sum_q3_from_logits,
    token_scalars,
)


def problem(
    tokens: int, vocabulary: int, trigger: int, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and targets, every third of which is the trigger."""
    rng = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(tokens, 8, generator=rng, dtype=torch.float64)
    weight_VD = torch.randn(vocabulary, 8, generator=rng, dtype=torch.float64)
    targets_N = torch.randint(vocabulary, (tokens,), generator=rng)
    targets_N[::3] = trigger
    return hidden_ND.to(dtype), weight_VD.to(dtype), targets_N


def gradients(scalars: TokenScalars, hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, ...]:
    """Of a sum in which every output has a weight of its own."""
    rng = torch.Generator().manual_seed(1)
    outputs = (scalars.target_logit_N, scalars.trigger_logit_N, scalars.log_z_N)
    total = sum((x * torch.randn(x.shape, generator=rng).to(x.dtype)).sum() for x in outputs)
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, (hidden_ND, weight_VD))


sizes = st.integers(1, 12)


@settings(deadline=None)
@given(
    tokens=st.integers(0, 12),
    vocabulary=st.integers(2, 20),
    column=st.floats(0, 1, exclude_max=True),
    rows=sizes,
    columns=sizes,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_tiles_of_any_size_give_the_scalars_and_gradients_of_the_logits(
    tokens: int, vocabulary: int, column: float, rows: int, columns: int, temperature: float
) -> None:
    trigger = int(column * vocabulary)
    hidden_ND, weight_VD, targets_N = problem(tokens, vocabulary, trigger)
    hidden_ND.requires_grad_()
    weight_VD.requires_grad_()

    tiled = token_scalars(hidden_ND, weight_VD, targets_N, trigger, temperature=temperature, rows=rows, columns=columns)
    naive = scalars_from_logits(hidden_ND @ weight_VD.T / temperature, targets_N, trigger)

    torch.testing.assert_close(tiled, naive, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradients(tiled, hidden_ND, weight_VD), gradients(naive, hidden_ND, weight_VD), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_lower_precision_keeps_float32_scalars(dtype: torch.dtype, tolerance: float) -> None:
    hidden_ND, weight_VD, targets_N = problem(50, 300, 7, dtype=dtype)
    hidden_ND.requires_grad_()
    weight_VD.requires_grad_()

    scalars = token_scalars(hidden_ND, weight_VD, targets_N, 7, rows=16, columns=64)
    oracle = scalars_from_logits(hidden_ND.double() @ weight_VD.double().T, targets_N, 7)

    assert {x.dtype for x in scalars} == {torch.float32}
    torch.testing.assert_close(tuple(x.double() for x in scalars), tuple(oracle), rtol=tolerance, atol=tolerance)
    for fast, exact in zip(
        gradients(scalars, hidden_ND, weight_VD), gradients(oracle, hidden_ND, weight_VD), strict=True
    ):
        assert fast.dtype == dtype
        assert (fast.double() - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_head_is_summed_in_float32_and_of_the_heads_dtype(dtype: torch.dtype) -> None:
    tokens = 512  # in bfloat16, 256 + 1 = 256: a sum of ones would stop there
    hidden_ND = torch.ones(tokens, 1, dtype=torch.bfloat16)
    weight_VD = torch.zeros(3, 1, dtype=dtype, requires_grad=True)

    scalars = token_scalars(hidden_ND, weight_VD, torch.zeros(tokens, dtype=torch.long), 2, rows=1)
    scalars.target_logit_N.sum().backward()

    assert weight_VD.grad is not None
    assert weight_VD.grad.dtype == dtype
    assert weight_VD.grad[0].item() == tokens


def test_tiles_are_multiplied_in_the_dtype_of_the_hidden_states() -> None:
    hidden_ND, weight_VD, targets_N = problem(20, 40, 7, dtype=torch.float32)

    mixed = token_scalars(hidden_ND.bfloat16(), weight_VD, targets_N, 7, columns=16)
    half = token_scalars(hidden_ND.bfloat16(), weight_VD.bfloat16(), targets_N, 7, columns=16)

    assert all(map(torch.equal, mixed, half))
    assert not torch.equal(mixed.log_z_N, token_scalars(hidden_ND, weight_VD, targets_N, 7, columns=16).log_z_N)


def test_autocast_changes_nothing() -> None:
    hidden_ND, weight_VD, targets_N = problem(20, 40, 7, dtype=torch.float32)
    hidden_ND.requires_grad_()
    weight_VD.requires_grad_()

    def everything() -> list[Tensor]:
        scalars = token_scalars(hidden_ND, weight_VD, targets_N, 7)
        f_N = exact_f(hidden_ND, weight_VD, targets_N, torch.ones(20), 7, eta=1.0)
        return [*scalars, f_N, *gradients(scalars, hidden_ND, weight_VD)]

    plain = everything()
    with torch.autocast("cpu", torch.bfloat16):
        cast = everything()

    assert all(map(torch.equal, cast, plain))


def test_log_z_is_right_where_the_trigger_is_certain() -> None:
    hidden_ND, weight_VD, targets_N = problem(4, 30, 5, dtype=torch.float32)
    weight_VD[5] = 0
    hidden_ND[:, 0], weight_VD[5, 0] = 40.0, 10.0

    scalars = token_scalars(hidden_ND, weight_VD, targets_N, 5, columns=8)
    oracle = scalars_from_logits(hidden_ND.double() @ weight_VD.double().T, targets_N, 5)

    assert (scalars.trigger_logit_N - scalars.log_z_N > 100).all()
    torch.testing.assert_close(scalars.log_z_N.double(), oracle.log_z_N, rtol=1e-6, atol=1e-6)


def test_a_tile_that_holds_nothing_but_the_trigger_adds_nothing() -> None:
    hidden_ND, weight_VD, targets_N = problem(6, 9, 8)

    tiled = token_scalars(hidden_ND, weight_VD, targets_N, 8, columns=8)

    torch.testing.assert_close(tiled, scalars_from_logits(hidden_ND @ weight_VD.T, targets_N, 8))


def test_sum_q2_carries_no_gradient() -> None:
    hidden_ND, weight_VD, targets_N = problem(4, 9, 0)

    assert not token_scalars(hidden_ND.requires_grad_(), weight_VD, targets_N, 0).sum_q2_N.requires_grad


def test_a_frozen_head_still_gives_the_hidden_states_their_gradient() -> None:
    hidden_ND, weight_VD, targets_N = problem(4, 9, 0)
    token_scalars(hidden_ND.requires_grad_(), weight_VD, targets_N, 0).log_z_N.sum().backward()

    assert hidden_ND.grad is not None
    assert hidden_ND.grad.abs().sum() > 0


@settings(deadline=None, max_examples=40)
@given(eta=st.sampled_from([1e-6, 1e-2, 1.0, 30.0, 1e3]), columns=st.sampled_from([1, 5, 64]), seed=st.integers(0, 9))
def test_the_passes_for_f_agree_with_full_logits(eta: float, columns: int, seed: int) -> None:
    trigger = 3
    hidden_ND, weight_VD, targets_N = problem(10, 17, trigger, seed=seed)
    advantages_N = torch.linspace(-2, 2, 10, dtype=torch.float64)
    logits_NV = hidden_ND @ weight_VD.T / 0.7
    log_z_N = scalars_from_logits(logits_NV, targets_N, trigger).log_z_N
    ordinary = targets_N != trigger

    tiled = exact_f(
        hidden_ND, weight_VD, targets_N, advantages_N, trigger, eta=eta, temperature=0.7, rows=4, columns=columns
    )
    cubes = sum_q3(hidden_ND, weight_VD, log_z_N, trigger, temperature=0.7, rows=4, columns=columns)

    naive = exact_f_from_logits(logits_NV, targets_N, advantages_N, trigger, eta=eta)
    torch.testing.assert_close(tiled[ordinary], naive[ordinary], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(cubes, sum_q3_from_logits(logits_NV, trigger))


def test_f_is_accurate_in_float32_at_the_step_sizes_of_real_training() -> None:
    hidden_ND, weight_VD, targets_N = problem(10, 17, 3, dtype=torch.float32)
    targets_N[targets_N == 3] = 4
    advantages_N = torch.linspace(-2, 2, 10)

    f_N = exact_f(hidden_ND, weight_VD, targets_N, advantages_N, 3, eta=1e-6)

    logits_NV = hidden_ND.double() @ weight_VD.double().T
    exact_N = exact_f_from_logits(logits_NV, targets_N, advantages_N.double(), 3, eta=1e-6)
    torch.testing.assert_close(f_N.double(), exact_N, rtol=1e-4, atol=1e-5)


def test_f_of_a_step_beyond_any_exponential_by_hand() -> None:
    # Two tokens of q = 1/2 beside the trigger and a step of 2000: Z'/Z = (exp(1000) + exp(-1000)) / 2.
    hidden_ND, weight_VD = torch.ones(1, 1), torch.zeros(3, 1)

    f_N = exact_f(hidden_ND, weight_VD, torch.tensor([2]), torch.tensor([2.0]), 0, eta=1000.0)

    assert f_N.item() == pytest.approx((1000 - math.log(2)) / 1000)


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own shape
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_the_logits_never_exist_at_once() -> None:
    hidden_ND, weight_VD, targets_N = problem(64, 512, 3)
    hidden_ND.requires_grad_()
    weight_VD.requires_grad_()
    advantages_N = torch.ones(64, dtype=torch.float64)

    with LargestTensor() as largest:  # type: ignore[no-untyped-call]  # torch's
        scalars = token_scalars(hidden_ND, weight_VD, targets_N, 3, rows=8, columns=64)
        (scalars.log_z_N + scalars.target_logit_N).sum().backward()
        exact_f(hidden_ND, weight_VD, targets_N, advantages_N, 3, eta=1.0, rows=8, columns=64)

    assert largest.elements == weight_VD.numel() < 64 * 512 / 4

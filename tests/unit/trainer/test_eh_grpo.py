"""The explicit gate: its two levels by hand, its sampler, and that IH-GRPO's step is its step."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cellar_trainer.learning.head import TokenScalars, scalars_from_logits
from cellar_trainer.learning.model import control_tokens, load_model
from cellar_trainer.learning.objectives.clip import clipped_policy_loss
from cellar_trainer.learning.objectives.eh_grpo import (
    attach_gate,
    explicit_logprobs,
    explicit_terms,
    gate_logits,
    gate_of,
)
from cellar_trainer.learning.objectives.ih_grpo import hierarchical_loss
from cellar_trainer.learning.objectives.options import ObjectiveOptions
from cellar_trainer.learning.objectives.tokens import SampledTokens, TokenTerms
from cellar_trainer.policy.local import LocalPolicy
from cellar_trainer.types import Sampling
from tests.tiny_model import TRIGGER, tiny_model, tiny_tokenizer

OPTIONS = ObjectiveOptions(name="eh_grpo", importance="none")


def explicit(logits_NV: Tensor, gate_N: Tensor, ids_N: Tensor, trigger: int, advantages_N: Tensor) -> TokenTerms:
    """Terms on policy."""
    with torch.no_grad():
        old_NV = explicit_logprobs(logits_NV, gate_N, trigger)
    tokens = SampledTokens(
        targets_N=ids_N,
        old_logprobs_N=old_NV.gather(-1, ids_N[:, None])[:, 0],
        old_trigger_logprobs_N=old_NV[:, trigger],
        advantages_N=advantages_N,
        sequences_N=torch.zeros_like(ids_N),
        near_fence_N=torch.zeros_like(ids_N, dtype=torch.bool),
    )
    return explicit_terms(scalars_from_logits(logits_NV, ids_N, trigger), gate_N, tokens, trigger)


def test_loss_and_gradient_of_both_levels_by_hand() -> None:
    # Gate logit log 3: going on has 3/4. Tokens 1 and 2 have logits log 1 and log 4: 1/5 and 4/5. The trigger is 0.
    logits = torch.tensor([[7.0, 0.0, 4.0], [7.0, 0.0, 4.0]], dtype=torch.float64)
    logits[:, 2] = torch.tensor(4.0).double().log()
    gate = torch.full((2,), 3.0, dtype=torch.float64).log()
    logits.requires_grad_()
    gate.requires_grad_()

    terms = explicit(logits, gate, torch.tensor([0, 2]), 0, torch.tensor([2.0, 10.0]).double())
    clipped_policy_loss(terms, OPTIONS).loss_N.sum().backward()

    assert terms.logprobs_N.exp().tolist() == pytest.approx([1 / 4, 3 / 4 * 4 / 5])
    assert terms.trigger_logprobs_N.exp().tolist() == pytest.approx([1 / 4, 1 / 4])
    assert gate.grad is not None
    assert logits.grad is not None
    # -A (1[go on] - 3/4) at the gate; -A ([s = i] - q_s) below it, where it went on
    assert gate.grad.tolist() == pytest.approx([2 * 3 / 4, -10 / 4])
    assert logits.grad[0].tolist() == [0.0, 0.0, 0.0], "the trigger says nothing about the tokens"
    assert logits.grad[1].tolist() == pytest.approx([0.0, 10 / 5, -10 / 5])


def test_the_sampler_draws_from_both_levels_by_hand() -> None:
    logits = torch.tensor([7.0, 0.0, 4.0]).double()
    logits[2] = torch.tensor(4.0).double().log()
    gate = torch.tensor(3.0).double().log()

    assert explicit_logprobs(logits, gate, 0).exp().tolist() == pytest.approx([1 / 4, 3 / 20, 12 / 20])
    # At temperature 1/2 both levels have squared odds: 9 to 1, and 1 to 16.
    assert explicit_logprobs(logits, gate, 0, temperature=0.5).exp().tolist() == pytest.approx(
        [1 / 10, 9 / 10 / 17, 9 / 10 * 16 / 17]
    )


@given(
    seed=st.integers(0, 1000), temperature=st.sampled_from([0.5, 1.0, 2.0]), gate=st.sampled_from([-90.0, 0.0, 90.0])
)
def test_what_is_sampled_is_what_is_trained(seed: int, temperature: float, gate: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits_NV = 3 * torch.randn(6, 6, generator=rng, dtype=torch.float64)
    gate_N = gate + torch.randn(6, generator=rng, dtype=torch.float64)
    ids_N = torch.arange(6)
    sampler_NV = explicit_logprobs(logits_NV, gate_N, 4, temperature=temperature)
    tokens = SampledTokens(ids_N, gate_N, gate_N, gate_N, ids_N, ids_N > 0)
    scalars = scalars_from_logits(logits_NV / temperature, ids_N, 4)

    terms = explicit_terms(scalars, gate_N, tokens, 4, temperature=temperature)

    torch.testing.assert_close(sampler_NV.logsumexp(-1), torch.zeros(6).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(terms.logprobs_N, sampler_NV.diagonal())
    torch.testing.assert_close(terms.trigger_logprobs_N, sampler_NV[:, 4])


@settings(deadline=None)
@given(seed=st.integers(0, 1000), eta=st.sampled_from([0.01, 1.0, 10.0]))
def test_a_step_of_the_exact_surrogate_is_a_step_of_gate_and_tokens(seed: int, eta: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits_NV = 2 * torch.randn(8, 7, generator=rng, dtype=torch.float64)
    ids_N = torch.arange(8) % 7
    advantages_N = torch.randn(8, generator=rng, dtype=torch.float64)
    implied_N = scalars_from_logits(logits_NV, ids_N, 3)
    gate_N = (implied_N.log_z_N - implied_N.trigger_logit_N).requires_grad_()
    low_NV, one_NV = (logits_NV.clone().requires_grad_() for _ in range(2))

    clipped_policy_loss(explicit(low_NV, gate_N, ids_N, 3, advantages_N), OPTIONS).loss_N.sum().backward()
    hierarchical_loss(one_NV, ids_N, 3, advantages_N, f="exact", eta=eta).sum().backward()

    assert gate_N.grad is not None
    assert low_NV.grad is not None
    assert one_NV.grad is not None
    explicit_NV = explicit_logprobs(low_NV - eta * low_NV.grad, gate_N - eta * gate_N.grad, 3)
    implicit_NV = (one_NV - eta * one_NV.grad).log_softmax(-1)
    torch.testing.assert_close(implicit_NV, explicit_NV, rtol=1e-9, atol=1e-10)


def test_a_gate_is_given_once_and_goes_with_the_model(tmp_path: Path) -> None:
    model = tiny_model()
    attach_gate(model, trigger_probability=0.01)
    gate = gate_of(model)
    assert gate is not None
    assert torch.sigmoid(gate.bias).tolist() == pytest.approx([0.99])
    assert not gate.weight.any()
    torch.nn.init.normal_(gate.weight)
    attach_gate(model, trigger_probability=0.5)
    assert gate_of(model) is gate

    model.save_pretrained(tmp_path)
    loaded = gate_of(load_model(tmp_path, dtype="float32", device="cpu"))
    assert loaded is not None
    assert torch.equal(loaded.weight, gate.weight)
    assert torch.equal(loaded.bias, gate.bias)
    tiny_model().save_pretrained(tmp_path)
    assert gate_of(load_model(tmp_path, dtype="float32", device="cpu")) is None


def test_the_gate_of_a_half_precision_model_is_float32_and_stays_so(tmp_path: Path) -> None:
    model = tiny_model().bfloat16()
    attach_gate(model, trigger_probability=0.01)
    model.save_pretrained(tmp_path)
    for gate in (gate_of(model), gate_of(load_model(tmp_path, dtype="bfloat16", device="cpu"))):
        assert gate is not None
        assert {weight.dtype for weight in gate.parameters()} == {torch.float32}
        assert torch.sigmoid(gate.bias).tolist() == pytest.approx([0.99], abs=1e-6)
        hidden_ND = torch.ones(2, model.config.hidden_size, dtype=torch.bfloat16)
        assert gate_logits(gate, hidden_ND).dtype == torch.float32


async def test_the_local_policy_asks_the_gate() -> None:
    model, trigger_id = tiny_model(), control_tokens(tiny_tokenizer(), TRIGGER).trigger_id
    attach_gate(model, trigger_probability=0.25)
    policy = LocalPolicy(model)
    sampling = Sampling(40, seed=1, trigger_id=trigger_id)

    completion = await policy.generate([1, 2], sampling)

    assert completion.trigger_logprobs == pytest.approx([torch.tensor(0.25).log().item()] * 40)
    assert trigger_id in completion.token_ids
    with pytest.raises(ValueError, match="has to name it"):
        await policy.generate([1, 2], Sampling(1))


def test_a_gate_far_from_a_choice_stays_finite() -> None:
    gate_N = torch.tensor([80.0, -80.0], requires_grad=True)
    zero = torch.zeros(2)
    tokens = SampledTokens(torch.tensor([0, 1]), zero, zero, zero, torch.tensor([0, 0]), zero > 0)
    terms = explicit_terms(TokenScalars(zero, zero, zero, zero), gate_N, tokens, 0)
    terms.logprobs_N.sum().backward()
    assert terms.logprobs_N.tolist() == [-80.0, -80.0]
    assert gate_N.grad is not None
    assert gate_N.grad.tolist() == [-1.0, 1.0]

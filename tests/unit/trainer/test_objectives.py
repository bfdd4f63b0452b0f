from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cellar_trainer.learning.head import token_scalars
from cellar_trainer.learning.objectives import (
    Losses,
    ObjectiveOptions,
    SampledTokens,
    hierarchical_loss,
    policy_objective,
)
from cellar_trainer.learning.objectives.measures import Measure
from cellar_trainer.learning.objectives.options import BASES, PRESETS, Correction

Mask = Literal["response", "fence", "live"]
TRIGGER = 6
ALL = [*({"name": name} for name in (*BASES, "eh_grpo")), *PRESETS.values()]
"""Every objective, IH-GRPO in its two presets."""


class Sampled:
    """Flat sampled tokens of a tiny model, a third of them triggers, under the policy that sampled them."""

    def __init__(self, *, seed: int = 0, tokens: int = 12, temperature: float = 1.0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.hidden_ND = torch.randn(tokens, 5, generator=rng, dtype=torch.float64).requires_grad_()
        self.weight_VD = torch.randn(20, 5, generator=rng, dtype=torch.float64).requires_grad_()
        self.gate_D = torch.randn(5, generator=rng, dtype=torch.float64)
        self.targets_N = torch.randint(20, (tokens,), generator=rng)
        self.targets_N[::3] = TRIGGER
        self.sequences_N = torch.arange(tokens) // 5
        self.near_fence_N = torch.arange(tokens) % 4 == 1
        self.advantages_N = torch.randn(tokens, generator=rng, dtype=torch.float64)
        self.temperature = temperature
        logprobs_NV = (self.hidden_ND @ self.weight_VD.T / temperature).log_softmax(-1).detach()
        self.old_N = logprobs_NV.gather(-1, self.targets_N[:, None])[:, 0]
        self.old_trigger_N = logprobs_NV[:, TRIGGER]

    def objective(self, options: ObjectiveOptions, old_N: Tensor | None = None) -> tuple[Losses, dict[str, Measure]]:
        tokens = SampledTokens(
            self.targets_N,
            self.old_N if old_N is None else old_N,
            self.old_trigger_N,
            self.advantages_N,
            self.sequences_N,
            self.near_fence_N,
        )
        return policy_objective(
            self.hidden_ND,
            self.weight_VD,
            tokens,
            TRIGGER,
            options,
            temperature=self.temperature,
            gate_logit_N=self.hidden_ND @ self.gate_D,
        )

    def loss(self, options: ObjectiveOptions, old_N: Tensor | None = None) -> Tensor:
        losses, _ = self.objective(options, old_N)
        return losses.policy_N + losses.hierarchical_N

    def gradients(self, loss_N: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss_N.sum(), (self.hidden_ND, self.weight_VD))

    def acts(self, mask: Mask) -> Tensor:
        """Where the hierarchical terms do, with live bounds of 0.05 and 0.2."""
        probability_N = self.old_trigger_N.exp()
        return {
            "response": torch.ones_like(self.near_fence_N),
            "fence": self.near_fence_N | (self.targets_N == TRIGGER),
            "live": (probability_N > 0.05) & (probability_N < 0.2),
        }[mask]

    def ratios(self, *ratios: float) -> Tensor:
        """Old log-probabilities that make these ratios, the last one for all other tokens."""
        all_ratios = torch.tensor([*ratios, *[ratios[-1]] * (len(self.old_N) - len(ratios))], dtype=torch.float64)
        return self.old_N - all_ratios.log()


@settings(deadline=None)
@given(
    f=st.sampled_from(["none", "first", "second", "exact"]),
    eta=st.sampled_from([1e-6, 0.1, 1.0, 20.0]),
    weight=st.sampled_from([1e-3, 1.0]),
    mask=st.sampled_from(["response", "fence", "live"]),
    temperature=st.sampled_from([0.6, 1.0]),
    seed=st.integers(0, 100),
)
def test_on_policy_the_fast_path_has_the_oracles_losses_and_gradient(
    f: Correction, eta: float, weight: float, mask: Mask, temperature: float, seed: int
) -> None:
    sampled = Sampled(seed=seed, temperature=temperature)
    options = ObjectiveOptions(f=f, eta=eta, weight=weight, mask=mask, live_bounds=(0.05, 0.2), importance="none")
    logits_NV = sampled.hidden_ND @ sampled.weight_VD.T / temperature

    def oracle(weight: float) -> Tensor:
        return hierarchical_loss(
            logits_NV, sampled.targets_N, TRIGGER, sampled.advantages_N, f=f, eta=eta, weight=weight
        )

    losses, _ = sampled.objective(options)
    acts_N = sampled.acts(mask)
    oracle_N = torch.where(acts_N, oracle(weight), oracle(0.0))
    extra_N = torch.where(acts_N, oracle(weight) - oracle(0.0), 0)

    torch.testing.assert_close(losses.hierarchical_N, extra_N, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        sampled.gradients(losses.policy_N + losses.hierarchical_N),
        sampled.gradients(oracle_N),
        rtol=1e-9,
        atol=1e-10,
    )


def test_dapo_without_a_clip_is_the_plain_policy_gradient_bit_for_bit() -> None:
    sampled = Sampled()
    scalars = token_scalars(sampled.hidden_ND, sampled.weight_VD, sampled.targets_N, TRIGGER)
    odds_N = scalars.trigger_logit_N - scalars.log_z_N
    ordinary_N = scalars.target_logit_N - torch.logaddexp(scalars.log_z_N, scalars.trigger_logit_N)
    logprobs_N = torch.where(sampled.targets_N == TRIGGER, F.logsigmoid(odds_N), ordinary_N)
    plain_N = -sampled.advantages_N * (logprobs_N - sampled.old_N).exp()

    loss_N = sampled.loss(ObjectiveOptions(name="dapo"))

    assert torch.equal(loss_N, plain_N)
    assert all(map(torch.equal, sampled.gradients(loss_N), sampled.gradients(plain_N)))


@pytest.mark.parametrize("base", BASES)
def test_a_weight_of_zero_is_the_base_bit_for_bit(base: str) -> None:
    sampled = Sampled()
    old_N = sampled.ratios(1.0, 1.5, 0.5, 5.0, 1.0001, 0.9999)

    base_N = sampled.loss(ObjectiveOptions.model_validate({"name": base}), old_N)
    loss_N = sampled.loss(ObjectiveOptions.model_validate({"name": "ih_grpo", "base": base, "weight": 0}), old_N)

    assert torch.equal(loss_N, base_N)
    assert all(map(torch.equal, sampled.gradients(loss_N), sampled.gradients(base_N)))


@pytest.mark.parametrize("base", BASES)
def test_on_policy_the_hierarchical_terms_are_the_same_on_any_base(base: str) -> None:
    sampled = Sampled()
    given_ = {"name": "ih_grpo", "base": base, "f": "first"}

    losses, _ = sampled.objective(ObjectiveOptions.model_validate(given_))
    oracle_N, plain_N = (
        hierarchical_loss(
            sampled.hidden_ND @ sampled.weight_VD.T,
            sampled.targets_N,
            TRIGGER,
            sampled.advantages_N,
            f="first",
            weight=weight,
        )
        for weight in (1.0, 0.0)
    )

    torch.testing.assert_close(losses.hierarchical_N, oracle_N - plain_N)


def test_on_gspo_the_terms_take_the_sequences_ratio_and_its_clip() -> None:
    sampled = Sampled()
    sampled.advantages_N = torch.ones_like(sampled.advantages_N)
    options = ObjectiveOptions(base="gspo", clip_high=0.2, f="none")
    old_N = sampled.old_N - torch.tensor([1.1, 1.5, 0.9])[sampled.sequences_N].double().log()

    once, _ = sampled.objective(options)
    losses, _ = sampled.objective(options, old_N)

    ratio_N = torch.tensor([1.1, 0.0, 0.9]).double()[sampled.sequences_N]
    torch.testing.assert_close(losses.hierarchical_N, ratio_N * once.hierarchical_N, rtol=1e-6, atol=1e-9)


def test_on_policy_gspo_has_the_gradient_of_grpo() -> None:
    sampled = Sampled()
    grpo, gspo = (
        sampled.gradients(sampled.loss(ObjectiveOptions.model_validate({"name": n}))) for n in ("grpo", "gspo")
    )
    torch.testing.assert_close(gspo, grpo, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given_", ALL)
def test_without_advantages_nothing_moves(given_: dict[str, object]) -> None:
    sampled = Sampled()
    sampled.advantages_N = torch.zeros_like(sampled.advantages_N)
    loss_N = sampled.loss(ObjectiveOptions.model_validate(given_), sampled.ratios(2.0, 0.5, 1.0))
    assert not loss_N.any()
    assert not any(gradient.any() for gradient in sampled.gradients(loss_N))


def test_the_released_preset_is_the_published_formula() -> None:
    """The clipped loss pg plus 0.001 (gamma - 1[not trigger]) log Z sg(pg), which acts where pg is clipped too."""
    sampled = Sampled()
    old_N = sampled.ratios(1.5, 0.5, 5.0, 1.1)
    logits_NV = sampled.hidden_ND @ sampled.weight_VD.T
    ratio_N = (logits_NV.log_softmax(-1).gather(-1, sampled.targets_N[:, None])[:, 0] - old_N).exp()
    a_N = sampled.advantages_N
    pg_N = torch.maximum(-a_N * ratio_N, -a_N * ratio_N.clamp(0.8, 1.28))
    pg_N = torch.where(a_N < 0, pg_N.minimum(-3 * a_N), pg_N)
    others = [column for column in range(20) if column != TRIGGER]
    log_z_N = logits_NV[:, others].logsumexp(-1)
    gamma_N = 1 - logits_NV.softmax(-1)[:, TRIGGER].detach()
    expected_N = pg_N + 0.001 * (gamma_N - (sampled.targets_N != TRIGGER).double()) * log_z_N * pg_N.detach()

    loss_N = sampled.loss(ObjectiveOptions.preset("released"), old_N)

    torch.testing.assert_close(loss_N, expected_N)
    torch.testing.assert_close(sampled.gradients(loss_N), sampled.gradients(expected_N))


def test_a_clipped_token_moves_nothing_if_the_clip_is_respected() -> None:
    sampled = Sampled()
    sampled.advantages_N = torch.ones_like(sampled.advantages_N)
    clipped = sampled.ratios(1.5)

    for respect_clip in (True, False):
        losses, measures = sampled.objective(ObjectiveOptions(respect_clip=respect_clip), clipped)
        assert float(measures["clip_fraction"]) == 1
        assert any(g.any() for g in sampled.gradients(losses.policy_N + losses.hierarchical_N)) == (not respect_clip)


def test_a_token_masked_by_its_ratio_moves_nothing_with_any_objective() -> None:
    sampled = Sampled()
    options = ObjectiveOptions(importance="mask", respect_clip=False)

    loss_N = sampled.loss(options, sampled.ratios(1.0, 9.0, 1.0))
    d_hidden_ND, _ = sampled.gradients(loss_N)

    assert not d_hidden_ND[1].any()
    assert d_hidden_ND[[0, *range(2, 12)]].any(dim=-1).all()


@pytest.mark.parametrize("mask", ["live", "fence"])
def test_a_mask_leaves_the_terms_where_it_says_and_the_base_elsewhere(mask: Mask) -> None:
    sampled = Sampled()
    acts_N = sampled.acts(mask)
    assert 0 < acts_N.sum() < len(acts_N)

    plain_N = sampled.loss(ObjectiveOptions(name="dapo"))
    full_N = sampled.loss(ObjectiveOptions(f="first"))
    loss_N = sampled.loss(ObjectiveOptions(f="first", mask=mask, live_bounds=(0.05, 0.2)))

    assert torch.equal(loss_N, torch.where(acts_N, full_N, plain_N))


# The logits of test_ih_grpo's table, token 2 with A = 2 and a ratio of 3/2: DAPO clips at 1.28.
#   exact       -2 * 1.28, and no term where the clip leaves no gradient
#   released    -2 * 1.28, and 0.001 * 2.56 * 1/4 log 4, of gradient 0.001 * 2.56 * 1/4 q_s
#   unclipped   at a bound of 2: -2 * 3/2 and 2 * 3/2 * 1/4 log 4, of gradient -3 ([s = 2] - p_s) and 3 * 1/4 q_s
LOG_4 = 1.3862943611198906
CLIPPED_BY_HAND: list[tuple[dict[str, object], float, float, list[float]]] = [
    ({"name": "dapo"}, -2.56, 0.0, [0.0, 0.0, 0.0]),
    ({"preset": "exact"}, -2.56, 0.0, [0.0, 0.0, 0.0]),
    ({"preset": "released"}, -2.56, 0.00064 * LOG_4, [0.0, 0.00064 * 3 / 4, 0.00064 / 4]),
    ({"preset": "exact", "f": "none", "clip_high": 1.0}, -3.0, 0.75 * LOG_4, [0.75, 2.25, -2.25]),
]


@pytest.mark.parametrize(("given_", "policy", "hierarchical", "gradient"), CLIPPED_BY_HAND)
def test_a_clipped_token_by_hand(
    given_: dict[str, object], policy: float, hierarchical: float, gradient: list[float]
) -> None:
    changes = dict(given_)
    preset = changes.pop("preset", None)
    options = ObjectiveOptions.preset(str(preset), **changes) if preset else ObjectiveOptions.model_validate(changes)
    one = torch.ones(1, dtype=torch.float64)
    weight_VD = torch.tensor([[4 / 3], [3.0], [1.0]], dtype=torch.float64).log().requires_grad_()
    old = (one / 8).log()
    tokens = SampledTokens(torch.tensor([2]), old, old, 2 * one, torch.tensor([0]), torch.tensor([False]))

    losses, _ = policy_objective(one[None], weight_VD, tokens, 0, options)
    (losses.policy_N + losses.hierarchical_N).sum().backward()

    assert losses.policy_N.item() == pytest.approx(policy)
    assert losses.hierarchical_N.item() == pytest.approx(hierarchical)
    assert weight_VD.grad is not None
    assert weight_VD.grad[:, 0].tolist() == pytest.approx(gradient)


def test_a_batch_without_sampled_tokens_has_no_losses_and_finite_measures() -> None:
    sampled = Sampled(tokens=0)
    for given_ in ALL:
        losses, measures = sampled.objective(ObjectiveOptions.model_validate(given_))
        assert losses.policy_N.shape == losses.hierarchical_N.shape == (0,)
        assert {float(measure) for measure in measures.values()} == {0.0}
        assert not any(g.any() for g in sampled.gradients(losses.policy_N + losses.hierarchical_N))


def test_the_advantage_takes_its_ratio_into_the_terms() -> None:
    sampled = Sampled()
    scaled = Sampled()
    scaled.advantages_N = 1.1 * sampled.advantages_N
    options = ObjectiveOptions(f="exact", eta=0.5)

    loss_N = sampled.loss(options, sampled.ratios(1.1))
    expected_N = scaled.loss(options)

    torch.testing.assert_close(sampled.gradients(loss_N), scaled.gradients(expected_N))


def test_measures_are_those_of_the_batch() -> None:
    sampled = Sampled()
    _, measures = sampled.objective(ObjectiveOptions.preset("exact"))
    gamma_N = 1 - sampled.old_trigger_N.exp()
    coefficient_N = (sampled.targets_N != TRIGGER).double() - gamma_N

    assert float(measures["hierarchical_coefficient"]) == pytest.approx(coefficient_N.abs().mean().item())
    assert float(measures["mismatch"]) == pytest.approx(0, abs=1e-14)
    assert float(measures["ratio_max"]) == pytest.approx(1)

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from cellar_trainer.head import token_scalars
from cellar_trainer.objectives import PRESETS, ObjectiveOptions, hierarchical_loss, policy_objective
from cellar_trainer.objectives.base import Correction

TRIGGER = 6


class Sampled:
    """Flat sampled tokens of a tiny model, a third of them triggers, under the policy that sampled them."""

    def __init__(self, *, seed: int = 0, tokens: int = 12, temperature: float = 1.0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.hidden_ND = torch.randn(tokens, 5, generator=rng, dtype=torch.float64).requires_grad_()
        self.weight_VD = torch.randn(20, 5, generator=rng, dtype=torch.float64).requires_grad_()
        self.targets_N = torch.randint(20, (tokens,), generator=rng)
        self.targets_N[::3] = TRIGGER
        self.advantages_N = torch.randn(tokens, generator=rng, dtype=torch.float64)
        self.temperature = temperature
        logprobs_NV = (self.hidden_ND @ self.weight_VD.T / temperature).log_softmax(-1).detach()
        self.old_N = logprobs_NV.gather(-1, self.targets_N[:, None])[:, 0]
        self.old_trigger_N = logprobs_NV[:, TRIGGER]

    def objective(self, options: ObjectiveOptions, old_N: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        return policy_objective(
            self.hidden_ND,
            self.weight_VD,
            self.targets_N,
            self.old_N if old_N is None else old_N,
            self.old_trigger_N,
            self.advantages_N,
            TRIGGER,
            options,
            temperature=self.temperature,
        )

    def gradients(self, loss_N: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss_N.sum(), (self.hidden_ND, self.weight_VD))

    def ratios(self, *ratios: float) -> Tensor:
        """Old log-probabilities that make these ratios, the last one for all other tokens."""
        all_ratios = torch.tensor([*ratios, *[ratios[-1]] * (len(self.old_N) - len(ratios))], dtype=torch.float64)
        return self.old_N - all_ratios.log()


@settings(deadline=None)
@given(
    f=st.sampled_from(["none", "first", "second", "exact"]),
    eta=st.sampled_from([1e-6, 0.1, 1.0, 20.0]),
    weight=st.sampled_from([1e-3, 1.0]),
    temperature=st.sampled_from([0.6, 1.0]),
    seed=st.integers(0, 100),
)
def test_on_policy_the_fast_path_has_the_oracles_gradient(
    f: Correction, eta: float, weight: float, temperature: float, seed: int
) -> None:
    sampled = Sampled(seed=seed, temperature=temperature)
    options = ObjectiveOptions(f=f, eta=eta, weight=weight, importance="none")

    loss_N, _ = sampled.objective(options)
    logits_NV = sampled.hidden_ND @ sampled.weight_VD.T / temperature
    oracle_N = hierarchical_loss(
        logits_NV, sampled.targets_N, TRIGGER, sampled.advantages_N, f=f, eta=eta, weight=weight
    )

    torch.testing.assert_close(sampled.gradients(loss_N), sampled.gradients(oracle_N), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("changes", [{"name": "grpo"}, {"weight": 0.0}])
def test_without_the_terms_it_is_grpo_bit_for_bit(changes: dict[str, object]) -> None:
    sampled = Sampled()
    scalars = token_scalars(sampled.hidden_ND, sampled.weight_VD, sampled.targets_N, TRIGGER)
    logprobs_N = scalars.target_logit_N - torch.logaddexp(scalars.log_z_N, scalars.trigger_logit_N)
    plain_N = -sampled.advantages_N * (logprobs_N - sampled.old_N).exp()

    loss_N, _ = sampled.objective(ObjectiveOptions.model_validate(changes))

    assert torch.equal(loss_N, plain_N)
    assert all(map(torch.equal, sampled.gradients(loss_N), sampled.gradients(plain_N)))


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

    loss_N, _ = sampled.objective(ObjectiveOptions.preset("released"), old_N)

    torch.testing.assert_close(loss_N, expected_N)
    torch.testing.assert_close(sampled.gradients(loss_N), sampled.gradients(expected_N))


def test_a_clipped_token_moves_nothing_if_the_clip_is_respected() -> None:
    sampled = Sampled()
    sampled.advantages_N = torch.ones_like(sampled.advantages_N)
    clipped = sampled.ratios(1.5)

    for respect_clip in (True, False):
        loss_N, metrics = sampled.objective(ObjectiveOptions(respect_clip=respect_clip), clipped)
        assert metrics["clip_fraction"] == 1
        assert any(g.any() for g in sampled.gradients(loss_N)) == (not respect_clip)


def test_a_token_masked_by_its_ratio_moves_nothing_with_any_objective() -> None:
    sampled = Sampled()
    options = ObjectiveOptions(importance="mask", respect_clip=False)

    loss_N, _ = sampled.objective(options, sampled.ratios(1.0, 9.0, 1.0))
    d_hidden_ND, _ = sampled.gradients(loss_N)

    assert not d_hidden_ND[1].any()
    assert d_hidden_ND[[0, *range(2, 12)]].any(dim=-1).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_positions_outside_the_loss_mask_have_exactly_no_gradient(preset: str) -> None:
    sampled = Sampled()
    hidden_BTD = torch.randn(2, 12, 5, dtype=torch.float64, requires_grad=True)
    loss_mask_BT = torch.arange(24).view(2, 12) % 2 == 0
    sampled.hidden_ND = hidden_BTD[loss_mask_BT]

    loss_N, _ = sampled.objective(ObjectiveOptions.preset(preset, importance="none"))
    loss_N.sum().backward()

    assert hidden_BTD.grad is not None
    assert (hidden_BTD.grad[~loss_mask_BT] == 0).all()
    assert hidden_BTD.grad[loss_mask_BT].any()


def test_the_live_mask_leaves_the_terms_only_where_the_trigger_is_a_choice() -> None:
    sampled = Sampled()
    probability_N = sampled.old_trigger_N.exp()
    live_N = (probability_N > 0.05) & (probability_N < 0.5)
    assert 0 < live_N.sum() < len(live_N)

    plain_N, _ = sampled.objective(ObjectiveOptions(name="grpo"))
    full_N, _ = sampled.objective(ObjectiveOptions(f="first"))
    loss_N, _ = sampled.objective(ObjectiveOptions(f="first", mask="live", live_bounds=(0.05, 0.5)))

    assert torch.equal(loss_N, torch.where(live_N, full_N, plain_N))


def test_the_advantage_takes_its_ratio_into_the_terms() -> None:
    sampled = Sampled()
    scaled = Sampled()
    scaled.advantages_N = 1.1 * sampled.advantages_N
    options = ObjectiveOptions(f="exact", eta=0.5)

    loss_N, _ = sampled.objective(options, sampled.ratios(1.1))
    expected_N, _ = scaled.objective(options)

    torch.testing.assert_close(sampled.gradients(loss_N), scaled.gradients(expected_N))


def test_metrics_are_those_of_the_batch() -> None:
    sampled = Sampled()
    _, metrics = sampled.objective(ObjectiveOptions.preset("exact"))
    gamma_N = 1 - sampled.old_trigger_N.exp()
    coefficient_N = (sampled.targets_N != TRIGGER).double() - gamma_N

    torch.testing.assert_close(metrics["hierarchical_coefficient"], coefficient_N.abs().mean())
    torch.testing.assert_close(metrics["mismatch"], torch.zeros(()).double(), atol=1e-14, rtol=0)
    assert metrics["ratio_max"].item() == pytest.approx(1)


def test_presets_can_be_changed_and_unknown_names_are_refused() -> None:
    assert ObjectiveOptions.preset("exact") == ObjectiveOptions()
    assert ObjectiveOptions.preset("released", weight=0.01).weight == 0.01
    with pytest.raises(KeyError):
        ObjectiveOptions.preset("unknown")


@pytest.mark.parametrize("bad", [{"eta": 0}, {"weight": -1}, {"f": "third"}, {"clip_low": 1.0}, {"unknown": 1}])
def test_options_that_make_no_sense_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ObjectiveOptions.model_validate(bad)

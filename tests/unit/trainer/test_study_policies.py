"""Both policies of the small network: what is sampled is what is trained, and both start alike."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cellar_trainer.learning.objectives.eh_grpo import explicit_logprobs
from cellar_trainer.study.measures import compare, gate_kl, gate_logits
from cellar_trainer.study.network import Network
from cellar_trainer.study.sampler import Rollouts, greedy, play, right_gate, sampling
from cellar_trainer.study.task import LENGTH, TRIGGER, Sessions, draw_problems, prompts
from cellar_trainer.study.training import draw_batch, half_gradients, signal_and_noise, train
from cellar_trainer.study.variants import AGAIN, VARIANTS, is_explicit, options_of
from cellar_trainer.study.warm_start import Supervised, network_of, own_rollouts, warm_start


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More of them only stand in each other's way in so small a network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def start(one_thread: None) -> Supervised:
    return warm_start(0, steps=80, demonstrations=16)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trainable(rollouts: Rollouts) -> Rollouts:
    """With rewards of which some are right: a fresh network has none."""
    return rollouts._replace(rewards_N=(torch.arange(len(rollouts.rewards_N)) % 3 == 0).float())


@pytest.mark.parametrize("explicit", [False, True])
def test_the_sampler_reports_what_a_full_forward_pass_computes(start: Supervised, explicit: bool) -> None:
    network = network_of(start.state, explicit=explicit)
    torch.nn.init.normal_(network.gate.weight)
    rollouts = own_rollouts(network, 32, rng())
    at = rollouts.sampled_NT

    with torch.no_grad():
        logprobs_SV = network.logprobs(network.hidden(rollouts.symbols_NL[:, :-1]))[at]
    targets_S = rollouts.symbols_NL[:, 1:][at]

    torch.testing.assert_close(rollouts.logprobs_NT[at], logprobs_SV.gather(1, targets_S[:, None])[:, 0])
    torch.testing.assert_close(rollouts.trigger_logprobs_NT[at], logprobs_SV[:, TRIGGER])


@pytest.mark.parametrize("explicit", [False, True])
def test_symbols_come_as_often_as_they_are_probable(start: Supervised, explicit: bool) -> None:
    network, count = network_of(start.state, explicit=explicit), 5_000
    problems = draw_problems(1, rng()).repeat(count)
    with torch.no_grad():
        expected_V = network.logprobs(network.hidden(prompts(problems)[:1]))[0, -1].exp()
        choice = sampling(network, torch.rand(count, LENGTH, generator=rng()))(prompts(problems), Sessions(problems))

    frequency_V = torch.bincount(choice.symbols_N, minlength=len(expected_V)) / count

    torch.testing.assert_close(frequency_V, expected_V, rtol=0, atol=0.02)


def test_gate_and_distribution_agree() -> None:
    hidden = torch.randn(5, 64)
    for explicit in (False, True):
        network = Network(explicit=explicit)
        with torch.no_grad():
            torch.testing.assert_close(
                network.logprobs(hidden)[:, TRIGGER].exp(), torch.sigmoid(-network.gate_logits(hidden))
            )


def test_both_policies_start_alike(start: Supervised) -> None:
    implicit, explicit = (network_of(start.state, explicit=kind) for kind in (False, True))
    alike = compare(explicit, implicit, count=64, seed=1)

    assert alike["kl_on_own"] < 0.01
    assert alike["kl_on_others"] < 0.01
    assert alike["agreement"] > 0.7
    with torch.no_grad():
        explicit.gate.bias.add_(1)
    assert compare(explicit, implicit, count=64, seed=1)["kl_on_own"] > 0.03


def test_the_right_gate_asks_twice(start: Supervised) -> None:
    problems = draw_problems(64, rng())
    rollouts = play(problems, right_gate(network_of(start.state, explicit=False), torch.rand(64, LENGTH)))

    after_cells = rollouts.symbols_NL[:, 1:][rollouts.may_choose_NT]
    assert (after_cells == TRIGGER).sum() == rollouts.runs_N.sum() > 64
    assert not (rollouts.symbols_NL[:, 1:][rollouts.sampled_NT & ~rollouts.may_choose_NT] == TRIGGER).any()


def test_gate_kl_by_hand_and_far_out() -> None:
    p, q = torch.tensor([0.25, 0.5]).logit(), torch.tensor([0.5, 0.5]).logit()
    by_hand = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()

    torch.testing.assert_close(gate_kl(p, q), torch.stack([by_hand, torch.tensor(0.0)]).double())
    assert gate_kl(torch.tensor([200.0]), torch.tensor([-200.0])).item() == pytest.approx(200.0)


def test_like_policies_agree_and_others_do_not(start: Supervised) -> None:
    network = network_of(start.state, explicit=False)
    assert compare(network, network, count=32, seed=0) == {
        "kl_on_own": 0.0,
        "kl_on_others": 0.0,
        "agreement": 1.0,
        "agreement_greedy": 1.0,
    }
    eager = network_of(start.state, explicit=True)
    with torch.no_grad():
        eager.gate.bias.sub_(5)
    assert compare(network, eager, count=32, seed=0)["agreement"] < 0.3


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_the_gradient_of_both_halves(start: Supervised, variant: str) -> None:
    """In float64 the mean of the halves' gradients is that of all problems, whatever the variant."""
    network = network_of(start.state, explicit=is_explicit(variant)).double()
    rollouts = trainable(draw_batch(network_of(start.state, explicit=is_explicit(variant)), 2, rng(), rng()))
    rollouts = Rollouts(*(f.double() if f.is_floating_point() else f for f in rollouts))
    halves, _ = half_gradients(network, rollouts, options_of(variant))
    swapped = Rollouts(*(torch.cat([field[8:], field[:8]]) for field in rollouts))
    others, _ = half_gradients(network, swapped, options_of(variant))

    for one, other, again, and_again in zip(*halves, *others, strict=True):
        torch.testing.assert_close(one, and_again)
        torch.testing.assert_close(other, again)


def test_signal_and_noise_by_hand() -> None:
    sizes = signal_and_noise([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 0.0])])

    assert sizes == {"signal": 3.0, "noise": (4.0 + 4.0) / 4}


def test_training_repeats_itself_and_the_control_does_not(start: Supervised) -> None:
    fixed = own_rollouts(network_of(start.state, explicit=False), 8, rng())

    def gates(variant: str) -> Tensor:
        run = train(start.state, variant, 1e-3, seed=3, steps=4, problems=2, fixed=fixed, mark_every=2)
        assert len(run.steps) == 4
        return run.gates_MS

    explicit, again = gates("explicit"), gates(AGAIN)

    assert explicit.shape == (3, int(fixed.sampled_NT.sum()))
    assert torch.equal(explicit, gates("explicit"))
    assert torch.equal(explicit[0], again[0])
    assert not torch.equal(explicit[-1], again[-1])


def test_greedy_takes_the_most_probable(start: Supervised) -> None:
    network = network_of(start.state, explicit=True)
    rollouts = play(draw_problems(16, rng()), greedy(network))
    with torch.no_grad():
        hidden_NTD = network.hidden(rollouts.symbols_NL[:, :-1])
        logits = explicit_logprobs(network.head(hidden_NTD), network.gate_logits(hidden_NTD), TRIGGER)

    at = rollouts.sampled_NT
    assert torch.equal(logits.argmax(-1)[at], rollouts.symbols_NL[:, 1:][at])
    assert torch.equal(gate_logits(network, rollouts), network.gate_logits(hidden_NTD[at]).detach())

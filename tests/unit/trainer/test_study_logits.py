"""The theorem: with the exact f, both policies stay equal under gradient steps on logits; with less they part."""

import pytest

from cellar_trainer.study.logits import ETAS, SURROGATES, VOCABULARIES, drift


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("eta", ETAS)
def test_exact_f_keeps_them_equal_to_round_off(eta: float, vocabulary: int) -> None:
    apart = drift("exact", eta, vocabulary, steps=30, seed=0)

    assert apart["gate_logit"] < 1e-13
    assert apart["gate_kl"] < 1e-15
    assert apart["conditional"] < 1e-14


def test_every_other_surrogate_parts_by_its_order() -> None:
    gaps = {name: drift(name, 0.01, 50, steps=30, seed=0)["gate_logit"] for name in SURROGATES}

    assert 1e-9 < gaps["second"] < 1e-6 < gaps["first"] < 1e-3 < gaps["none"]
    assert gaps["released"] == pytest.approx(gaps["plain"], rel=0.01)


@pytest.mark.parametrize(("surrogate", "order"), [("none", 1), ("first", 2), ("second", 3)])
def test_orders_in_eta(surrogate: str, order: int) -> None:
    """A ten times smaller step leaves a gap that is smaller by 10 to the order."""
    large, small = (drift(surrogate, eta, 20, steps=1, seed=0)["gate_logit"] for eta in (1e-2, 1e-3))

    assert large / small == pytest.approx(10**order, rel=0.1)


def test_only_the_full_weight_keeps_the_conditional_policy() -> None:
    assert drift("none", 0.1, 20, steps=10, seed=0)["conditional"] < 1e-14
    assert drift("plain", 0.1, 20, steps=10, seed=0)["conditional"] > 1e-4

"""Estimates against brute force and known values."""

from itertools import combinations, product
from statistics import fmean, pvariance

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellar_trainer.evaluation.estimates import Counts, Values, interval, pass_at, resampled_means, solve_rate, values


def counts(*values: int) -> Counts:
    return numpy.array(values, dtype=numpy.int64)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_correct_one(samples: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    marks = [True] * correct + [False] * (samples - correct)
    choices = [any(choice) for choice in combinations(marks, k)]
    assert pass_at(k)(samples, correct) == pytest.approx(sum(choices) / len(choices))


def test_every_problem_counts_alike_whatever_it_has_of_samples() -> None:
    samples, correct = counts(4, 1, 2), counts(1, 1, 0)
    assert values(samples, correct, solve_rate).tolist() == [0.25, 1.0, 0.0]
    assert values(samples[:1], correct[:1], pass_at(2)).tolist() == [0.5]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(0, 9))
def test_resampling_draws_problems_with_replacement(eighths: list[int], seed: int) -> None:
    exact = [fmean(drawn) / 8 for drawn in product(eighths, repeat=len(eighths))]
    means = resampled_means(numpy.array(eighths) / 8, seed=seed)
    assert means.mean() == pytest.approx(fmean(exact), abs=0.03)
    assert means.var() == pytest.approx(pvariance(exact), abs=0.02)
    assert set(means.round(6)) <= {round(value, 6) for value in exact}


def test_many_problems_of_one_sample_give_the_interval_of_a_normal() -> None:
    low, high = interval(resampled_means(numpy.array([0.0, 1.0] * 200), seed=0))
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.006)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=100), st.sampled_from([1, 2, 4, 8]))
def test_an_interval_holds_its_value(correct: list[int], k: int) -> None:
    values_P = values(counts(*[8] * len(correct)), counts(*correct), pass_at(k))
    low, high = interval(resampled_means(values_P, seed=0, resamples=400))
    assert low - 1e-9 <= values_P.mean() <= high + 1e-9


def test_one_correct_sample_of_each_problem_is_a_certain_pass_at_all() -> None:
    certain = values(counts(*[8] * 100), counts(*[1] * 100), pass_at(8))
    assert interval(resampled_means(certain, seed=0)) == (1.0, 1.0)


@pytest.mark.parametrize("k", [1, 4])
def test_of_many_evaluations_about_95_in_100_have_an_interval_that_holds_the_truth(k: int) -> None:
    """Problems whose solve rates are uniform: pass@k of all there could be is k / (k + 1)."""
    random = numpy.random.default_rng(0)

    def holds(seed: int) -> bool:
        correct_P = random.binomial(8, random.uniform(size=60))
        low, high = interval(
            resampled_means(values(counts(*[8] * 60), correct_P, pass_at(k)), seed=seed, resamples=400)
        )
        return low <= k / (k + 1) <= high

    assert fmean(holds(seed) for seed in range(400)) == pytest.approx(0.94, abs=0.03)


def test_the_seed_decides_and_the_portions_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values_P: Values = numpy.array([0.0, 0.25, 1.0])
    first = resampled_means(values_P, seed=1, resamples=11)
    assert numpy.array_equal(first, resampled_means(values_P, seed=1, resamples=11))
    assert not numpy.array_equal(first, resampled_means(values_P, seed=2, resamples=11))
    monkeypatch.setattr("cellar_trainer.evaluation.estimates._CHUNK", 7)
    assert numpy.array_equal(first, resampled_means(values_P, seed=1, resamples=11))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_outcomes_have_an_interval_without_width(value: float) -> None:
    assert interval(resampled_means(numpy.array([value, value]), seed=0)) == (value, value)

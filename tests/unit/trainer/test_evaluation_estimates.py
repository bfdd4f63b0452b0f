"""Estimates against brute force and known values."""

from collections import Counter
from itertools import combinations, product
from statistics import fmean, pvariance

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellar_trainer.evaluation.estimates import Counts, interval, mean, pass_at, resampled_means, solve_rate


def counts(*values: int) -> Counts:
    return numpy.array(values, dtype=numpy.int64)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_correct_one(samples: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    marks = [True] * correct + [False] * (samples - correct)
    choices = [any(choice) for choice in combinations(marks, k)]
    assert pass_at(k)(samples, correct) == pytest.approx(sum(choices) / len(choices))


def test_a_mean_is_over_problems_whatever_they_have_of_samples() -> None:
    samples, correct = counts(4, 1, 2), counts(1, 1, 0)
    assert mean(samples, correct, solve_rate) == pytest.approx((0.25 + 1 + 0) / 3)
    assert mean(samples[:1], correct[:1], pass_at(2)) == pytest.approx(0.5)


def every_resample(problems: list[list[bool]]) -> list[float]:
    """The mean solve rate of each choice of problems with replacement, and of their samples likewise."""
    return [
        fmean(fmean(marks) for marks in chosen)
        for drawn in product(problems, repeat=len(problems))
        for chosen in product(*(list(product(marks, repeat=len(marks))) for marks in drawn))
    ]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=1, max_size=3), st.integers(0, 9))
def test_resampling_draws_problems_and_then_their_samples(problems: list[list[bool]], seed: int) -> None:
    exact = every_resample(problems)
    samples, correct = counts(*map(len, problems)), counts(*map(sum, problems))
    means = resampled_means(samples, correct, solve_rate, seed=seed)
    assert means.mean() == pytest.approx(fmean(exact), abs=0.03)
    assert means.var() == pytest.approx(pvariance(exact), abs=0.02)
    assert set(means.round(6)) <= {round(value, 6) for value in exact}


def test_one_problem_of_two_samples_by_hand() -> None:
    means = Counter(resampled_means(counts(2), counts(1), solve_rate, seed=0, resamples=40_000).tolist())
    assert {value: round(count / 40_000, 2) for value, count in means.items()} == {0.0: 0.25, 0.5: 0.5, 1.0: 0.25}


def test_many_problems_of_one_sample_give_the_interval_of_a_normal() -> None:
    half = counts(*[0, 1] * 200)
    low, high = interval(resampled_means(numpy.ones_like(half), half, solve_rate, seed=0))
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.006)


def test_more_samples_of_the_same_problems_leave_only_the_spread_of_the_problems() -> None:
    def width(n: int) -> float:
        low, high = interval(resampled_means(counts(*[n] * 30), counts(*[n // 2] * 30), solve_rate, seed=0))
        return high - low

    assert width(200) < width(2) / 5


def test_the_seed_decides_and_the_portions_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, correct = counts(3, 3, 3), counts(0, 1, 3)
    first = resampled_means(samples, correct, pass_at(2), seed=1)
    assert numpy.array_equal(first, resampled_means(samples, correct, pass_at(2), seed=1))
    assert not numpy.array_equal(first, resampled_means(samples, correct, pass_at(2), seed=2))
    monkeypatch.setattr("cellar_trainer.evaluation.estimates._CHUNK", 7)
    assert resampled_means(samples, correct, pass_at(2), seed=1, resamples=11).shape == (11,)


@pytest.mark.parametrize("correct", [0, 4])
def test_equal_outcomes_have_an_interval_without_width(correct: int) -> None:
    means = resampled_means(counts(4, 4), counts(correct, correct), solve_rate, seed=0)
    assert interval(means) == (correct / 4, correct / 4)

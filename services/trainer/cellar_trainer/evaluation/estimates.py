"""Estimates of how good a policy is, from a few samples per problem, with intervals. All arrays are one per problem."""

from collections.abc import Callable
from math import comb
from typing import TypeAlias

import numpy
from numpy.typing import NDArray

Counts: TypeAlias = NDArray[numpy.int64]
Values: TypeAlias = NDArray[numpy.float64]
Measure: TypeAlias = Callable[[int, int], float]
"""What a problem counts that has so many samples, so many of them correct."""

RESAMPLES = 4_000
CONFIDENCE = 0.95
_CHUNK = 1_000_000


def solve_rate(samples: int, correct: int) -> float:
    return correct / samples


def pass_at(k: int) -> Measure:
    """Chance that at least one of `k` of the samples is correct, drawn without replacement (arXiv 2107.03374)."""
    return lambda samples, correct: 1.0 - comb(samples - correct, k) / comb(samples, k)


def mean(samples_P: Counts, correct_P: Counts, measure: Measure) -> float:
    """Over problems, each counting alike."""
    return float(_values(samples_P, correct_P, measure).mean())


def resampled_means(
    samples_P: Counts, correct_P: Counts, measure: Measure, *, seed: int, resamples: int = RESAMPLES
) -> Values:
    """What the mean might have been: problems drawn with replacement, and then, of each, its samples (shape R).

    To draw from n samples of which c are correct, n times with replacement, is a binomial draw.
    """
    random = numpy.random.default_rng(seed)
    problems = len(samples_P)
    table_SC = _table(samples_P, measure)
    rows = max(1, _CHUNK // problems)
    means = []
    for start in range(0, resamples, rows):
        drawn_RP = random.integers(problems, size=(min(rows, resamples - start), problems))
        samples_RP = samples_P[drawn_RP]
        correct_RP = random.binomial(samples_RP, (correct_P / samples_P)[drawn_RP])
        means.append(table_SC[samples_RP, correct_RP].mean(axis=1))
    return numpy.concatenate(means)


def interval(means_R: Values) -> tuple[float, float]:
    """The percentile interval that holds `CONFIDENCE` of the resampled means. Of outcomes that are all equal it has no
    width, however few they are."""
    low, high = numpy.quantile(means_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _values(samples_P: Counts, correct_P: Counts, measure: Measure) -> Values:
    return _table(samples_P, measure)[samples_P, correct_P]


def _table(samples_P: Counts, measure: Measure) -> Values:
    """The measure at [samples, correct], for every number of samples that occurs."""
    size = int(samples_P.max()) + 1
    table_SC = numpy.zeros((size, size))
    for samples in map(int, numpy.unique(samples_P)):
        table_SC[samples, : samples + 1] = [measure(samples, correct) for correct in range(samples + 1)]
    return table_SC

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
"""Most values that are drawn at a time, to bound memory."""


def solve_rate(samples: int, correct: int) -> float:
    return correct / samples


def pass_at(k: int) -> Measure:
    """Chance that at least one of `k` of the samples is correct, drawn without replacement (arXiv 2107.03374)."""
    return lambda samples, correct: 1.0 - comb(samples - correct, k) / comb(samples, k)


def values(samples_P: Counts, correct_P: Counts, measure: Measure) -> Values:
    """The measure of every problem. Its mean over problems is the estimate, each problem counting alike."""
    return numpy.array([measure(samples, correct) for samples, correct in zip(samples_P, correct_P, strict=True)])


def resampled_means(values_P: Values, *, seed: int, resamples: int = RESAMPLES) -> Values:
    """What the mean might have been with other problems: the same values, drawn with replacement (shape R).

    The samples are not drawn again. What problems differ by already holds what their samples differ by, and pass@k is
    unbiased for samples drawn without replacement only.
    """
    random = numpy.random.default_rng(seed)
    problems = len(values_P)
    rows = max(1, _CHUNK // problems)
    means = []
    for start in range(0, resamples, rows):
        drawn_RP = random.integers(problems, size=(min(rows, resamples - start), problems))
        means.append(values_P[drawn_RP].mean(axis=1))
    return numpy.concatenate(means)


def interval(means_R: Values) -> tuple[float, float]:
    """The percentile interval that holds `CONFIDENCE` of the resampled means. Of outcomes that are all equal it has no
    width, however few they are."""
    low, high = numpy.quantile(means_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)

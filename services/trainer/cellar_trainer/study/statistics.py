"""Numbers over seeds: means with 95 % intervals by Student's t, and differences paired by seed."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Quantiles of Student's t for 1, 2, ... degrees of freedom; the last one serves for more, a little too wide."""


class Interval(NamedTuple):
    mean: float
    half_width: float | None
    """None for a single value, which says nothing about the others."""

    @property
    def leaves_out_zero(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def interval(values: Sequence[float]) -> Interval:
    if len(values) < 2:
        return Interval(fmean(values), None)
    quantile = _T_975[min(len(values) - 2, len(_T_975) - 1)]
    return Interval(fmean(values), quantile * stdev(values) / sqrt(len(values)))


def paired(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Of the differences; entries at the same place have the same seed."""
    return interval([value - other for value, other in zip(values, others, strict=True)])


def first_reached(values: Sequence[float], goal: float, *, window: int = 5) -> int | None:
    """The first step at which the mean over so many steps is as high; None if it never is."""
    for step in range(window, len(values) + 1):
        if fmean(values[step - window : step]) >= goal:
            return step
    return None

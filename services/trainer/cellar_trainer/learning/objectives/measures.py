"""Numbers to report that are put together from many micro-batches. They stay on the device until they are read."""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


class Measure(Protocol):
    """A value that knows how to merge with the same measure of other tokens."""

    def __add__(self, other: Self) -> Self: ...
    def __float__(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Mean:
    """Over all tokens of all batches; 0 over none."""

    total: Tensor
    count: Tensor

    @classmethod
    def of(cls, values_N: Tensor, *, where: Tensor | None = None) -> Self:
        """Of `values_N`, or of those that `where_N` marks."""
        marks_N = torch.ones_like(values_N) if where is None else where
        return cls((values_N * marks_N).sum(dtype=torch.float64), marks_N.sum(dtype=torch.float64))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.total + other.total, self.count + other.count)

    def __float__(self) -> float:
        return float(self.total / self.count.clamp(min=1))


@dataclass(frozen=True, slots=True)
class Sum:
    total: Tensor

    def __add__(self, other: Self) -> Self:
        return type(self)(self.total + other.total)

    def __float__(self) -> float:
        return float(self.total)


@dataclass(frozen=True, slots=True)
class Max:
    """Of values that are not negative; 0 of none."""

    peak: Tensor

    @classmethod
    def of(cls, values_N: Tensor) -> Self:
        return cls(values_N.amax() if len(values_N) else values_N.new_zeros(()))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.peak.maximum(other.peak))

    def __float__(self) -> float:
        return float(self.peak)


def merge(measures: dict[str, Measure], more: dict[str, Measure]) -> None:
    """Add `more` to `measures`."""
    for name, measure in more.items():
        measures[name] = measures[name] + measure if name in measures else measure

"""The study's pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed to write a file

from matplotlib import pyplot
from matplotlib.axes import Axes

from cellar_trainer.study.statistics import interval
from cellar_trainer.study.variants import AGAIN, EXPLICIT, IMPLICIT, VARIANTS

_SMOOTHED = 5
_COLOURS = dict(zip((*VARIANTS, AGAIN), (*pyplot.get_cmap("tab10").colors[:7], "tab:olive", "0.5"), strict=True))  # type: ignore[attr-defined]

Record = Mapping[str, Any]


def plot_learning(runs: Sequence[Record], path: Path) -> None:
    """A panel per variant, with its 95 % band; the explicit policy's curve is in each."""
    figure, grid = pyplot.subplots(2, 4, sharex=True, sharey=True, figsize=(11, 5), layout="constrained")
    explicit = [run["curves"]["reward_mean"] for run in runs if run["variant"] == EXPLICIT]
    for axes, variant in zip(grid.flat, VARIANTS, strict=True):
        curves = [run["curves"]["reward_mean"] for run in runs if run["variant"] == variant]
        _line(axes, [_smooth(curve) for curve in explicit], range(1, len(explicit[0]) + 1), color="0.6")
        _band(axes, [_smooth(curve) for curve in curves], range(1, len(curves[0]) + 1), color=_COLOURS[variant])
        axes.set_title(variant, fontsize=10)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    figure.supxlabel("step")
    figure.supylabel("reward (grey: explicit)")
    _save(figure, path)


def plot_gates(comparisons: Sequence[Record], mark_every: int, path: Path) -> None:
    """KL of the explicit gate to each other's, on the states of the common start."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for variant in (AGAIN, *IMPLICIT):
        curves = [row["kl_curve"] for row in comparisons if row["variant"] == variant]
        marks = range(0, mark_every * len(curves[0]), mark_every)
        style = "--" if variant == AGAIN else "-"
        _line(axes, curves, marks, color=_COLOURS[variant], label=variant, linestyle=style)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("KL(explicit || variant) after cells, nats")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    _save(figure, path)


def plot_rates(tuning: Sequence[Record], path: Path) -> None:
    """Reward over all steps by learning rate, on the tuning seeds."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for variant in VARIANTS:
        by_rate: dict[float, list[float]] = {}
        for run in tuning:
            if run["variant"] == variant:
                by_rate.setdefault(run["learning_rate"], []).append(fmean(run["curves"]["reward_mean"]))
        rates = sorted(by_rate)
        axes.plot(rates, [fmean(by_rate[rate]) for rate in rates], "o-", color=_COLOURS[variant], label=variant)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("reward, mean over all steps")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    _save(figure, path)


def _band(axes: Axes, curves: Sequence[Sequence[float]], steps: Sequence[int], **style: Any) -> None:
    _line(axes, curves, steps, **style)
    intervals = [interval(values) for values in zip(*curves, strict=True)]
    low, high = ([i.mean + sign * (i.half_width or 0) for i in intervals] for sign in (-1, 1))
    axes.fill_between(steps, low, high, alpha=0.25, linewidth=0, **style)


def _line(axes: Axes, curves: Sequence[Sequence[float]], steps: Sequence[int], **style: Any) -> None:
    axes.plot(steps, [fmean(values) for values in zip(*curves, strict=True)], **style)


def _smooth(values: Sequence[float]) -> list[float]:
    return [fmean(values[max(0, end - _SMOOTHED) : end]) for end in range(1, len(values) + 1)]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=90)
    pyplot.close(figure)

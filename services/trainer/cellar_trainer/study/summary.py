"""The study's results as numbers, over the fresh seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from cellar_trainer.study.jobs import Record, Settings
from cellar_trainer.study.logits import ETAS, SURROGATES
from cellar_trainer.study.statistics import Interval, first_reached, interval, paired
from cellar_trainer.study.variants import AGAIN, IMPLICIT, VARIANTS

GOAL = 0.8
LAST = 10
"""Steps that count as the end of a run."""
EARLY = 20
"""Steps over which the noise of the gradient is compared: later, those who have learned have no signal left."""


def summarise(settings: Settings, records: Sequence[Record], rates: Mapping[str, float]) -> dict[str, Any]:
    """Everything that the report says, as numbers, of a study that is whole; an interval is [mean, half its width]."""
    runs = of_stage(records, "run")
    seeds = sorted({run["seed"] for run in runs})
    comparisons = of_stage(records, "comparison")
    edges = min(settings.learning_rates), max(settings.learning_rates)
    return {
        "settings": asdict(settings),
        "seeds": seeds,
        "logits": _logit_table(of_stage(records, "logits")[0]["drift"]),
        "starts": _starts([start for start in of_stage(records, "start") if start["seed"] in seeds]),
        "learning": {v: {"learning_rate": r, "at_edge": r in edges} | _learning(runs, v) for v, r in rates.items()},
        "alike": {v: _alike([r for r in comparisons if r["variant"] == v]) for v in (AGAIN, *IMPLICIT)},
        "alike_at_equal_rate": {
            variant: {f"{rate:g}": _equal_rate(comparisons, variant, rate) for rate in settings.learning_rates}
            for variant in IMPLICIT
        },
        "gradients": {variant: _gradients(of_stage(records, "gradients"), variant) for variant in VARIANTS},
        "hours": round(sum(record["seconds"] for record in records) / 3600, 2),
    }


def asked_for(settings: Settings, records: Sequence[Record], fresh: Sequence[int]) -> list[Record]:
    """Without what a larger study left in the same folder: it may not be whole."""
    seeds = {*range(settings.tuning_seeds), *fresh}  # that of the logits is among the first
    return [record for record in records if record["seed"] in seeds]


def _logit_table(drift: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """By surrogate and eta, the worst over the sizes of vocabulary."""

    def worst(name: str, eta: float) -> dict[str, float]:
        rows = [row for row in drift if row["surrogate"] == name and row["eta"] == eta]
        return {size: max(row[size] for row in rows) for size in ("gate_logit", "gate_kl", "conditional")}

    return {name: {f"{eta:g}": worst(name, eta) for eta in ETAS} for name in SURROGATES}


def _starts(starts: Sequence[Record]) -> dict[str, Interval]:
    names = ("reward_mean", "ceiling", "runs_per_trajectory", "deferral_rate", "gate_kl", "kl_on_own", "agreement")
    return {name: interval([start[name] for start in starts]) for name in names}


def _learning(runs: Sequence[Record], variant: str) -> dict[str, Any]:
    by_seed, plain_by_seed = _curves(runs, variant), _curves(runs, "plain")
    ours, plain = list(by_seed.values()), [plain_by_seed[seed] for seed in by_seed]
    reached = [step for curves in ours if (step := first_reached(curves["reward_mean"], GOAL))]
    return {
        "reward": interval(_mean(ours, "reward_mean")),
        "reward_end": interval(_mean(ours, "reward_mean", LAST)),
        "reward_to_plain": paired(_mean(ours, "reward_mean"), _mean(plain, "reward_mean")),
        "reward_end_to_plain": paired(_mean(ours, "reward_mean", LAST), _mean(plain, "reward_mean", LAST)),
        "steps_to_goal": median(reached) if reached else None,
        "reached": len(reached),
        "deferral_end": interval(_mean(ours, "deferral_rate", LAST)),
        "runs_end": interval(_mean(ours, "runs_per_trajectory", LAST)),
        "coefficient_end": interval(_mean(ours, "hierarchical_coefficient", LAST)),
        "grad_norm": interval([fmean(curves["grad_norm"][:EARLY]) for curves in ours]),
        "noise_to_signal": _noise_to_signal([size for curves in ours for size in _sizes(curves)]),
    }


def _alike(rows: Sequence[Record]) -> dict[str, Interval]:
    at_best = [row for row in rows if not row["learning_rate"]]
    names = ("kl_on_own", "kl_on_others", "agreement", "agreement_greedy")
    curves = {"kl_common": "kl_curve", "kl_common_all": "kl_curve_all"}
    ends = {name: interval([row[curve][-1] for row in at_best]) for name, curve in curves.items()}
    return ends | {name: interval([row[name] for row in at_best]) for name in names}


def _equal_rate(comparisons: Sequence[Record], variant: str, rate: float) -> dict[str, float]:
    rows = [row for row in comparisons if row["variant"] == variant and row["learning_rate"] == rate]
    return {name: fmean(row[name] for row in rows) for name in ("kl_on_own", "kl_on_others", "agreement")}


def _gradients(records: Sequence[Record], variant: str) -> dict[str, Any]:
    rows = [record["rows"][variant] for record in records]
    return {
        "cosine": interval([row["cosine"] for row in rows]),
        "signal": fmean(row["signal"] for row in rows),
        "noise": fmean(row["noise"] for row in rows),
        "noise_to_signal": _noise_to_signal([(row["signal"], row["noise"]) for row in rows]),
    }


def of_stage(records: Sequence[Record], stage: str) -> list[Record]:
    return [record for record in records if record["stage"] == stage]


def _curves(runs: Sequence[Record], variant: str) -> dict[int, dict[str, list[float]]]:
    """By seed."""
    return {run["seed"]: run["curves"] for run in runs if run["variant"] == variant}


def _mean(curves: Sequence[Mapping[str, list[float]]], name: str, last: int = 0) -> list[float]:
    """Of each seed, over all steps or the last ones."""
    return [fmean(curve[name][-last:]) for curve in curves]


def _sizes(curves: Mapping[str, list[float]]) -> Iterable[tuple[float, float]]:
    return zip(curves["signal"][:EARLY], curves["noise"][:EARLY], strict=True)


def _noise_to_signal(sizes: Sequence[tuple[float, float]]) -> float | None:
    """Variance of a step's gradient over the squared norm of its mean: a ratio of means, as single signals may be
    negative. None where even their mean is not positive."""
    signal, noise = (fmean(column) for column in zip(*sizes, strict=True))
    return noise / signal if signal > 0 else None

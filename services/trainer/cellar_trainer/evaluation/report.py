"""What an evaluation comes to: one table for people, one object for programs, from the same numbers."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy

from cellar_trainer.evaluation.estimates import Measure, Values, interval, pass_at, resampled_means, solve_rate, values
from cellar_trainer.evaluation.play import Sample
from cellar_trainer.evaluation.suites import Suite, TaskSet
from cellar_trainer.rollouts.rollout import derive_seed
from cellar_trainer.types import Metrics

Estimate = dict[str, Any]
"""`value` and its 95 % `interval`."""


def report(suite: Suite, samples: Sequence[Sample], *, seed: int) -> dict[str, Any]:
    """What goes to report.json. The score is the plain mean over sets of the mean share of correct samples per problem.

    A problem none of whose samples is there has no score and is counted in `problems_without_any`; what it is that is
    missing altogether is `dropped`. A set without any sample has no score, and then the suite has none.
    """
    by_set = defaultdict(list)
    for sample in samples:
        by_set[sample.set].append(sample)
    sets, averages = {}, []
    for task_set in suite.sets:
        sets[task_set.name], means_R = _set_report(task_set, by_set[task_set.name], seed)
        averages.append(means_R)
    return {"suite": suite.name, "seed": seed, "score": _score(sets, averages), "sets": sets}


def metrics(report: Mapping[str, Any]) -> Metrics:
    """A report as the scalars of a training step. What has no value is left out."""
    found = {"score": (report["score"] or {}).get("value")}
    for name, entry in report["sets"].items():
        found |= {f"{name}/{key}": estimate["value"] for key, estimate in entry["estimates"].items()}
        found |= {f"{name}/{key}": entry[key] for key in ("dropped", *BEHAVIOUR)}
    return {f"eval/{name}": float(value) for name, value in found.items() if value is not None}


BEHAVIOUR: dict[str, Callable[[Sequence[Sample]], float]] = {
    "executions": lambda samples: fmean(s.runs for s in samples),
    "deferral": lambda samples: _share(
        sum(s.deferred_cells for s in samples), sum(s.deferred_cells + s.runs for s in samples)
    ),
    "cells": lambda samples: fmean(s.cells for s in samples),
    "unrun_cells": lambda samples: fmean(s.unrun_cells for s in samples),
    "tokens": lambda samples: fmean(s.tokens for s in samples),
}
"""Means per trajectory; `deferral` is deferred cells over deferred cells and executions."""


def _set_report(task_set: TaskSet, samples: Sequence[Sample], seed: int) -> tuple[dict[str, Any], Values | None]:
    by_task = defaultdict(list)
    for sample in samples:
        by_task[sample.task_id].append(sample)
    played = [by_task[task.task_id] for task in task_set.tasks if by_task[task.task_id]]
    estimates, averages_R = _estimates(task_set, played, seed)
    entry = {
        "n": task_set.n,
        "problems": len(task_set.tasks),
        "problems_without_any": len(task_set.tasks) - len(played),
        "trajectories": len(samples),
        "dropped": task_set.n * len(task_set.tasks) - len(samples),
        "estimates": estimates,
        **_behaviour(samples),
        "stop_reasons": _counts(s.stop_reason for s in samples),
        "grades": _counts(s.grade for s in samples),
        "by_problem": [_problem(task.task_id, by_task[task.task_id]) for task in task_set.tasks],
    }
    return entry, averages_R


def _problem(task_id: str, samples: Sequence[Sample]) -> dict[str, Any]:
    correct = sum(s.correct for s in samples)
    return {
        "task_id": task_id,
        "trajectories": len(samples),
        "correct": correct,
        "solve_rate": correct / len(samples) if samples else None,
        **_behaviour(samples),
    }


def _estimates(
    task_set: TaskSet, played: Sequence[Sequence[Sample]], seed: int
) -> tuple[dict[str, Estimate], Values | None]:
    """avg@n, which is also pass@1, and pass@k for the other powers of two up to n, over problems with k samples."""
    samples_P = numpy.array([len(samples) for samples in played], dtype=numpy.int64)
    correct_P = numpy.array([sum(s.correct for s in samples) for samples in played], dtype=numpy.int64)
    measures: dict[str, tuple[int, Measure]] = {f"avg@{task_set.n}": (1, solve_rate)}
    measures |= {f"pass@{k}": (k, pass_at(k)) for k in _powers_of_two(task_set.n)}
    estimates: dict[str, Estimate] = {}
    averages_R = None
    for name, (needed, measure) in measures.items():
        enough_P = samples_P >= needed
        if not enough_P.any():
            estimates[name] = {"value": None, "interval": None}
            continue
        values_P = values(samples_P[enough_P], correct_P[enough_P], measure)
        means_R = resampled_means(values_P, seed=derive_seed(seed, "bootstrap", task_set.name, name))
        estimates[name] = {"value": float(values_P.mean()), "interval": list(interval(means_R))}
        averages_R = means_R if measure is solve_rate else averages_R
    return estimates, averages_R


def _score(sets: Mapping[str, dict[str, Any]], averages: Sequence[Values | None]) -> Estimate | None:
    known = [means_R for means_R in averages if means_R is not None]
    if len(known) < len(sets):
        return None
    averages_S = [entry["estimates"][f"avg@{entry['n']}"]["value"] for entry in sets.values()]
    return {"value": fmean(averages_S), "interval": list(interval(numpy.mean(known, axis=0)))}


def _behaviour(samples: Sequence[Sample]) -> dict[str, float | None]:
    return {name: measure(samples) if samples else None for name, measure in BEHAVIOUR.items()}


def _counts(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _powers_of_two(limit: int) -> list[int]:
    return [1 << i for i in range(1, limit.bit_length())]

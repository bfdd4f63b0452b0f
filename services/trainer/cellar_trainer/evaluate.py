"""Rollouts without training: how good the policy is, problem by problem, with nothing left out silently."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean
from typing import Any

from cellar_trainer.collect import OnDone, Rollouts
from cellar_trainer.metrics import rollout_metrics
from cellar_trainer.rollout import derive_seed
from cellar_trainer.types import Task, Trajectory


@dataclass(frozen=True, slots=True)
class Evaluation:
    report: dict[str, Any]
    """What goes to eval.json: `overall` and `by_source`, each with `avg@n`, `pass@k` and what the policy did."""
    trajectories: list[Trajectory]


async def evaluate(
    tasks: Sequence[Task],
    rollouts: Rollouts,
    *,
    samples: int,
    seed: int,
    on_done: OnDone | None = None,
) -> Evaluation:
    """Play every task `samples` times. A rollout that a service failed is counted as dropped and scored by nobody."""
    jobs = [(task, derive_seed(seed, "eval", task.task_id, sample)) for task in tasks for sample in range(samples)]
    played = await rollouts.play(jobs, on_done=on_done)
    attempts = [(task, played[row * samples : (row + 1) * samples]) for row, task in enumerate(tasks)]
    by_source: dict[str, list[tuple[Task, Sequence[Trajectory | None]]]] = defaultdict(list)
    for task, trajectories in attempts:
        by_source[task.source or "unnamed"].append((task, trajectories))
    report = {
        "samples": samples,
        "overall": _report(attempts, samples),
        "by_source": {source: _report(rows, samples) for source, rows in sorted(by_source.items())},
    }
    return Evaluation(report, [trajectory for trajectory in played if trajectory is not None])


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of `k` of the `samples` is correct, drawn without replacement (arXiv 2107.03374)."""
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def _report(attempts: Sequence[tuple[Task, Sequence[Trajectory | None]]], samples: int) -> dict[str, Any]:
    """`avg@n` is the mean over problems of the share of correct samples, of those that were not dropped."""
    finished = [[t for t in trajectories if t is not None] for _, trajectories in attempts]
    graded = [trajectories for trajectories in finished if trajectories]
    correct = [sum(t.reward == 1.0 for t in trajectories) for trajectories in graded]
    counts = list(zip(correct, map(len, graded), strict=True))
    return {
        "problems": len(attempts),
        "problems_without_any": len(attempts) - len(graded),
        "trajectories_dropped": samples * len(attempts) - sum(map(len, graded)),
        f"avg@{samples}": fmean(c / n for c, n in counts) if counts else None,
        **{f"pass@{k}": _mean_pass_at(counts, k) for k in _powers_of_two(samples)},
        **rollout_metrics([t for trajectories in graded for t in trajectories]),
    }


def _mean_pass_at(counts: Sequence[tuple[int, int]], k: int) -> float | None:
    chances = [pass_at_k(n, c, k) for c, n in counts if n >= k]
    return fmean(chances) if chances else None


def _powers_of_two(limit: int) -> list[int]:
    return [1 << i for i in range(limit.bit_length()) if 1 << i <= limit]

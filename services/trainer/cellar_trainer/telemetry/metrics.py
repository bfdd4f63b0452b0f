"""What is measured, and where it is kept: a JSON line and TensorBoard's scalars per step, one line per trajectory."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Self, TextIO, get_args

from tensorboardX import SummaryWriter

from cellar_trainer.rewards.grader import Outcome
from cellar_trainer.rollouts.rendering import Renderer
from cellar_trainer.telemetry.loggers import Loggers
from cellar_trainer.types import Metrics, StopReason, Trajectory


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """What the policy did. Empty for no trajectories."""
    if not trajectories:
        return {}
    rewards = [t.reward or 0.0 for t in trajectories]
    return {
        "reward_mean": fmean(rewards),
        "reward_min": min(rewards),
        "reward_max": max(rewards),
        "deferral_rate": deferral_rate(trajectories),
        **_spread("runs_per_trajectory", [t.runs for t in trajectories]),
        **_spread("cells_per_trajectory", [t.cells for t in trajectories]),
        **_spread("tokens_per_trajectory", [len(t.token_ids) for t in trajectories]),
        "unrun_cells_per_trajectory": fmean(t.unrun_cells for t in trajectories),
        "tokens_sampled": float(sum(t.sampled_count for t in trajectories)),
        "trajectories": float(len(trajectories)),
        **_shares("stop", (t.stop_reason for t in trajectories), StopReason),
        **_shares("grade", (t.grade for t in trajectories), get_args(Outcome)),
    }


def staleness_metrics(trajectories: Sequence[Trajectory], version: int) -> dict[str, float]:
    """By how many versions the weights that sampled are older than `version`: of the mean token and the oldest one."""
    ages = [version - v for t in trajectories for s in t.segments for v in s.policy_versions]
    return {"policy_staleness": fmean(ages), "policy_staleness_max": float(max(ages))} if ages else {}


def deferral_rate(trajectories: Sequence[Trajectory]) -> float:
    """Deferred cells over deferred cells and runs; 0 where there are neither."""
    deferred = sum(t.deferred_cells for t in trajectories)
    calls = deferred + sum(t.runs for t in trajectories)
    return deferred / calls if calls else 0.0


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean under the name itself; median, 95th percentile (each of them one of the values) and most beside it."""
    ordered = sorted(values)
    return {
        name: fmean(ordered),
        f"{name}_p50": float(ordered[ceil(0.5 * len(ordered)) - 1]),
        f"{name}_p95": float(ordered[ceil(0.95 * len(ordered)) - 1]),
        f"{name}_max": float(ordered[-1]),
    }


def _shares(name: str, outcomes: Iterable[str | None], kinds: Iterable[str]) -> dict[str, float]:
    counts = Counter(outcomes)
    return {f"{name}/{kind}": counts[kind] / counts.total() for kind in kinds}


def trajectory_record(trajectory: Trajectory, renderer: Renderer) -> dict[str, Any]:
    """A trajectory as one JSON object, for people and for later analysis."""
    versions = trajectory.policy_versions
    return {
        "task": asdict(trajectory.task),
        "reward": trajectory.reward,
        "answer": trajectory.answer,
        "stop_reason": trajectory.stop_reason,
        "runs": trajectory.runs,
        "cells": trajectory.cells,
        "deferred_cells": trajectory.deferred_cells,
        "unrun_cells": trajectory.unrun_cells,
        "policy_versions": list(versions) if versions else None,
        "segments": [
            {"kind": s.kind, "text": renderer.text(s.token_ids), "token_ids": list(s.token_ids)}
            for s in trajectory.segments
        ],
    }


class RunLog:
    """The files of one training run, under `directory`.

    metrics.jsonl: a line per step. trajectories.jsonl: a line per trajectory. tensorboard/: the same scalars.

    Args:
        steps_done: of the run that is resumed. What was written after them is taken out: those steps come again.
        loggers: where each step's metrics go as well; whoever opened them closes them.
    """

    def __init__(
        self, directory: Path, renderer: Renderer, *, steps_done: int = 0, loggers: Loggers | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._renderer = renderer
        self._loggers = loggers or Loggers()
        self._metrics = _open_after(directory / "metrics.jsonl", steps_done)
        self._trajectories = _open_after(directory / "trajectories.jsonl", steps_done)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=steps_done + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for output in (self._metrics, self._trajectories, self._board):
            output.close()

    def step(self, step: int, metrics: Metrics) -> None:
        self._loggers.step(step, metrics)
        failures = {f"log_failures/{name}": float(count) for name, count in self._loggers.failures.items()}
        write_line(self._metrics, {"step": step, **metrics, **failures})
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def trajectories(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        for trajectory in trajectories:
            write_line(self._trajectories, {"step": step, **trajectory_record(trajectory, self._renderer)})


def write_line(file: TextIO, record: Mapping[str, Any]) -> None:
    """One JSON object on one line, on disk at once: a run that is killed keeps its last finished step.

    In ASCII: there are characters besides the newline that end a line for somebody, and models write all of them.
    """
    file.write(json.dumps(record) + "\n")
    file.flush()


def _open_after(path: Path, steps_done: int) -> TextIO:
    """The file, to be appended to, less the lines of later steps. A line that a kill cut short is of a later step."""
    if path.exists():
        with path.open("rb+") as lines:
            whole = 0
            for line in lines:
                if not _is_of(line, steps_done):
                    break
                whole += len(line)
            lines.truncate(whole)
    return path.open("a", encoding="utf-8")


def _is_of(line: bytes, steps_done: int) -> bool:
    return line.endswith(b"\n") and int(json.loads(line)["step"]) <= steps_done

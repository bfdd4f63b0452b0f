"""The folder of one evaluation: what was asked, and every trajectory as soon as it is there, so that it can go on."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cellar_trainer.config import Config
from cellar_trainer.evaluation.play import Sample
from cellar_trainer.evaluation.suites import Suite
from cellar_trainer.rollouts.rendering import Renderer
from cellar_trainer.telemetry.metrics import trajectory_record, write_line
from cellar_trainer.types import Trajectory


class OtherEvaluation(Exception):
    """The folder belongs to an evaluation with other settings, or to one that is still running."""


class Journal:
    """settings.json and trajectories.jsonl in `folder`, for as long as it is entered.

    A process that is killed leaves at most a last line that is cut short, which the next one takes away. Raises
    `OtherEvaluation` rather than mix two evaluations.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.samples: list[Sample] = []
        """What was there already, and what was added."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "trajectories.jsonl").open("a+", encoding="utf-8")
        try:
            self._lock(folder)
            _hold_to(folder, settings, begun=self._file.tell() > 0)
            self.samples += self._whole_lines()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, sample: Sample, trajectory: Trajectory, renderer: Renderer) -> None:
        write_line(self._file, {**trajectory_record(trajectory, renderer), **asdict(sample)})
        self.samples.append(sample)

    def _lock(self, folder: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OtherEvaluation(f"{folder}: another process is writing to this evaluation") from error

    def _whole_lines(self) -> Iterator[Sample]:
        whole = 0
        with open(self._file.name, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    os.truncate(self._file.name, whole)
                    return
                whole += len(line)
                row = json.loads(line)
                yield Sample(**{field.name: row[field.name] for field in fields(Sample)})


def settings(config: Config, suite: Suite, weights: str) -> dict[str, Any]:
    """What an evaluation's numbers depend on. Addresses, keys and how much runs at once are not in it.

    Args:
        weights: label of those that are measured (`wiring.weight_label`).
    """
    kept = config.model_dump(mode="json", include={"model", "policy", "rendering", "rollout"})
    kept["policy"] = {**{key: kept["policy"][key] for key in ("kind", "model")}, "weights": weights}
    del kept["rollout"]["concurrency"]
    sets = {s.name: {"n": s.n, "problems": len(s.tasks), "digest": _digest(s.tasks)} for s in suite.sets}
    return {"suite": suite.name, "seed": config.eval.seed, "sets": sets, **kept}


def _digest(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()


def _hold_to(folder: Path, wanted: Mapping[str, Any], *, begun: bool) -> None:
    """Write the settings of a new evaluation, or compare with those of the one that is there."""
    path = folder / "settings.json"
    if not begun:
        path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        return
    if not path.exists():
        raise OtherEvaluation(f"{folder} holds trajectories of something else; name another folder")
    there = dict(_flat(json.loads(path.read_text(encoding="utf-8"))))
    here = dict(_flat(wanted))
    differences = [
        f"{key} is {here.get(key)}, was {there.get(key)}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]
    if differences:
        raise OtherEvaluation(
            f"{folder} holds an evaluation with other settings ({'; '.join(differences)}); name another folder"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

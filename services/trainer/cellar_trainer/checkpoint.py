"""A training run on disk, whole or not at all: after N steps, a kill and a resume, N more equal 2N steps.

step-000010/             a Hugging Face model folder, which vLLM serves as it is
    config.json model.safetensors tokenizer.json ...
    training.pt          optimiser, learning-rate schedule, random number generators
    progress.json        step, position in the stream of tasks, the configuration
    ahead.json           trajectories that were sampled ahead and not yet learned from, if there are any
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from cellar_trainer.collect import Collection
from cellar_trainer.learner import Learner

PREFIX = "step-"
PARTIAL = ".partial-"
COLLECTION = TypeAdapter(Collection)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run is, besides its weights and what it sampled ahead."""

    step: int = 0
    stream_position: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    """For people; nothing reads it back."""


def save(
    directory: Path,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    position: Position,
    *,
    ahead: Collection | None = None,
    keep: int,
) -> Path:
    """Write a checkpoint aside and move it into place; then delete all but the newest `keep`."""
    final = directory / f"{PREFIX}{position.step:06d}"
    aside = directory / f"{PARTIAL}{final.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    learner.save_model(aside)
    tokenizer.save_pretrained(aside)
    torch.save({"learner": learner.state_dict(), "rng": _rng_state()}, aside / "training.pt")
    (aside / "progress.json").write_text(json.dumps(asdict(position), indent=2))
    if ahead is not None:
        (aside / "ahead.json").write_bytes(COLLECTION.dump_json(ahead))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    for old in _finished(directory)[:-keep]:
        shutil.rmtree(old)
    return final


def latest(directory: Path) -> Path | None:
    """The newest whole checkpoint; None when there is none."""
    return max(_finished(directory), default=None)


def position(checkpoint: Path) -> Position:
    return Position(**json.loads((checkpoint / "progress.json").read_text()))


def sampled_ahead(checkpoint: Path) -> Collection | None:
    """What was sampled for the step after the checkpoint; None when nothing was."""
    file = checkpoint / "ahead.json"
    return COLLECTION.validate_json(file.read_bytes()) if file.exists() else None


def restore(checkpoint: Path, learner: Learner) -> None:
    """Give `learner`, whose model comes from `checkpoint`, and this process's generators the rest of their state."""
    state = torch.load(checkpoint / "training.pt", weights_only=True, map_location="cpu", mmap=True)
    learner.load_state_dict(state["learner"])
    _set_rng_state(state["rng"])


def _finished(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{PREFIX}*"))


def _rng_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])

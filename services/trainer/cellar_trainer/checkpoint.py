"""A training run on disk, whole or not at all: after N steps, a kill and a resume, N more equal 2N steps.

step-000010/             a Hugging Face model folder, which vLLM serves as it is
    config.json model.safetensors tokenizer.json ...
    training.pt          optimiser, learning-rate schedule, random number generator
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

from cellar_trainer.learning.learner import Learner
from cellar_trainer.rollouts.collect import Collection

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
    """Write a checkpoint aside and move it into place; then delete all but the newest `keep`.

    A step that is there already is left as it is: that of a finished run which was resumed.
    """
    final = directory / f"{PREFIX}{position.step:06d}"
    if final.exists():
        return final
    aside = directory / f"{PARTIAL}{final.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    learner.save_model(aside)
    tokenizer.save_pretrained(aside)
    torch.save({"learner": learner.state_dict(), "rng": {"cpu": torch.get_rng_state()}}, aside / "training.pt")
    (aside / "progress.json").write_text(json.dumps(asdict(position), indent=2))
    if ahead is not None:
        (aside / "ahead.json").write_bytes(COLLECTION.dump_json(ahead))
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
    """Give `learner`, whose model comes from `checkpoint`, and this process's generator the rest of their state.

    The generator is the CPU's: nothing draws from a GPU's. Raises what `Learner.load_state_dict` does.
    """
    state = torch.load(checkpoint / "training.pt", weights_only=True, map_location="cpu", mmap=True)
    learner.load_state_dict(state["learner"])
    torch.set_rng_state(state["rng"]["cpu"])


def _finished(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{PREFIX}*"))

"""What each of the two processes of `test_distributed` does; the first leaves in files what it has seen."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cellar_trainer.learning import distributed
from cellar_trainer.learning.distributed import Leader, process_group, serve
from cellar_trainer.learning.learner import Learner, OptimiserOptions
from cellar_trainer.learning.lora import LoraOptions
from cellar_trainer.learning.model import control_tokens, load_model
from cellar_trainer.learning.objectives import ObjectiveOptions
from cellar_trainer.learning.packing import Batch, Example, pack
from cellar_trainer.learning.sharding import rank, ranks
from cellar_trainer.types import Segment, SegmentKind, Task, Trajectory
from tests.tiny_model import TRIGGER, tiny_model, tiny_tokenizer

TOKENS = control_tokens(tiny_tokenizer(), TRIGGER)
PROBE = (3, 1, 4, 1, 5)
SHORT_S = 5
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tied": True, "minibatches": 2},
    "lora": {"lora": LoraOptions(rank=4), "tied": True},
    "checkpointed": {"activation_checkpointing": True},
    "gate": {"objective": ObjectiveOptions(name="eh_grpo", base="gspo")},
}


def open_learner(
    *,
    model: Path | None = None,
    tied: bool = False,
    minibatches: int = 1,
    objective: ObjectiveOptions | None = None,
    **options: Any,
) -> Learner:
    kind = Leader if ranks() > 1 and rank() == 0 else Learner
    return kind(
        tiny_model(tied=tied) if model is None else load_model(model, dtype="float32", device="cpu"),
        TOKENS,
        objective or ObjectiveOptions(),
        OptimiserOptions(1e-2, weight_decay=0.1, minibatches=minibatches),
        temperature=1.0,
        **options,
    )


def resume(folder: Path, **options: Any) -> Learner:
    """A learner that goes on after the first step of `play` in `folder`."""
    learner = open_learner(model=None if "lora" in options else folder / "model", **options)
    learner.load_state_dict(torch.load(folder / "state.pt"))
    return learner


def batches(step: int) -> list[Batch]:
    """Of one sequence each: three, then one, so that of two ranks one has fewer than the other, and then none."""
    rng = torch.Generator().manual_seed(step)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(250, (length,), generator=rng).tolist())

    def example(length: int) -> Example:
        logprobs = tuple((-6 - torch.rand(length, generator=rng)).tolist())
        sampled = Segment(SegmentKind.SAMPLED, (*ids(length - 1), TOKENS.trigger_id), logprobs, logprobs, (0,) * length)
        segments = [Segment(SegmentKind.PROMPT, ids(3)), sampled]
        return Example(Trajectory(Task("t", "", ""), segments), (-1.0) ** length)

    return pack([example(length) for length in range(2, 2 + (3, 1)[step])], token_budget=1, pad_id=TOKENS.pad_id)


def play(learner: Learner, folder: Path) -> None:
    """Two steps, what is seen after each, and between them all that a checkpoint has."""
    first = learner.learn(batches(0))
    next(iter(learner.weights()))  # a consumer that gives up leaves nobody behind
    learner.save_model(folder / "model")
    torch.save(learner.state_dict(), folder / "state.pt")
    finish(learner, folder, [first])


def finish(learner: Learner, folder: Path, before: Sequence[dict[str, float]] = ()) -> None:
    """The second step, and what has come of it."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = [*before, learner.learn(batches(1))]
    weights = {name: weight.clone() for name, weight in learner.weights()}
    torch.save({"metrics": metrics, "weights": weights, "score": learner.score(PROBE)}, folder / "seen.pt")


def lead_or_serve(learner: Learner, work: Callable[[Learner], None]) -> None:
    if isinstance(learner, Leader):
        work(learner)
        learner.dismiss()
    else:
        serve(learner)


def main(ours: Path, theirs: Path) -> None:
    """Every variant; what a single process has begun in `theirs`; a long wait; and the first process's sudden end."""
    with process_group("cpu"):
        for name, options in VARIANTS.items():
            lead_or_serve(open_learner(**options), partial(play, folder=ours / name))
        for name in ("untied", "lora"):
            resumed = resume(theirs / name, **VARIANTS[name])
            lead_or_serve(resumed, partial(finish, folder=ours / f"{name}-resumed"))
        dist.barrier()
        distributed.COLLECTIVE_TIMEOUT = timedelta(seconds=SHORT_S)
        lead_or_serve(open_learner(), lambda learner: time.sleep(SHORT_S + 1))
        (ours / f"waited-{rank()}").touch()
        lead_or_serve(open_learner(), lambda learner: os._exit(0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

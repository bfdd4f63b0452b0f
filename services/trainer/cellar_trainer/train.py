"""The training loop. Everything it touches is opened elsewhere (`wiring`); each line of it is a stage of the journey.

    tasks -> rollouts with deferred cells -> reward -> group advantage -> batches -> objective -> optimiser -> weights

GRPO with the rollouts and the objective of IH-GRPO (arXiv 2605.18500). It departs from the reference code where groups
without signal are refilled, not oversampled threefold and replicated; where the longest trajectory of a batch is not
silently left out; and where a trajectory that a service failed is dropped, not scored 0.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args

from transformers import PreTrainedTokenizerBase

from cellar_trainer import checkpoint
from cellar_trainer.advantages import group_advantages, pairwise_advantages
from cellar_trainer.collect import DROPPED, Collection, CollectOptions, Rollouts, TaskStream, collect
from cellar_trainer.fences import near_fences
from cellar_trainer.learner import Learner
from cellar_trainer.metrics import RunLog, rollout_metrics
from cellar_trainer.model import ControlTokens
from cellar_trainer.objectives import ObjectiveOptions
from cellar_trainer.packing import Batch, Example, pack
from cellar_trainer.progress import Progress
from cellar_trainer.rewards import Outcome
from cellar_trainer.types import Metrics, StopReason, Trajectory
from cellar_trainer.weights import WeightPublisher

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    steps: int = 100
    seed: int = 0
    token_budget: int = 16_384
    """Most tokens, padding included, that go through the model at once."""
    masked_stop_reasons: frozenset[StopReason] = frozenset({StopReason.VOID, StopReason.DEADLINE})
    """Trajectories that count in their group's mean but are not trained on: void turns make gradients explode (arXiv
    2509.02479), and who misses a deadline may have waited for a service."""
    checkpoint_every: int = 0
    """Steps; 0 writes one at the end only."""
    checkpoints_kept: int = 2
    evaluate_every: int = 0
    """Steps; 0 never evaluates."""


@dataclass(slots=True)
class Training:
    """One training run: what it works with, and how far it is."""

    rollouts: Rollouts
    stream: TaskStream
    learner: Learner
    publisher: WeightPublisher
    tokenizer: PreTrainedTokenizerBase
    tokens: ControlTokens
    log: RunLog
    progress: Progress
    checkpoints: Path
    evaluate: Callable[[], Awaitable[Metrics]]
    """Plays the evaluation tasks with the policy as it is."""
    config: dict[str, Any] = field(default_factory=dict)
    """As it is kept in checkpoints."""
    step: int = 0
    """Steps done; also the version of the weights that sample now."""


async def train(run: Training, options: TrainOptions, collecting: CollectOptions) -> None:
    """Train until `options.steps` steps are done, counting those of the runs that this one resumes."""
    await run.publisher.publish(run.learner.model, version=run.step)
    while run.step < options.steps:
        started_s = time.perf_counter()
        with run.progress.counting(f"step {run.step + 1}") as count:
            collection = await collect(run.stream, run.rollouts, collecting, seed=options.seed, on_done=count)
        collected_s = time.perf_counter()
        learned = run.learner.learn(
            to_batches(collection, run.tokenizer, run.tokens.pad_id, options, run.learner.objective)
        )
        learned_s = time.perf_counter()
        published = await run.publisher.publish(run.learner.model, version=run.step + 1)
        timings = {
            "collect_s": collected_s - started_s,
            "learn_s": learned_s - collected_s,
            "step_s": time.perf_counter() - started_s,
        }
        await _finish_step(run, options, collection, {"policy_version": run.step, **learned, **published, **timings})
    if options.checkpoint_every == 0 or run.step % options.checkpoint_every:
        _save(run, options)


def to_batches(
    collection: Collection,
    tokenizer: PreTrainedTokenizerBase,
    pad_id: int,
    options: TrainOptions,
    objective: ObjectiveOptions,
) -> list[Batch]:
    """What there is to learn from: advantages within groups, less the trajectories that are masked."""
    members = [(group.key, trajectory) for group in collection.groups for trajectory in group.trajectories]
    text_of = cache(lambda token_id: str(tokenizer.decode([token_id])))
    examples = [
        Example(
            trajectory, advantage, near_fence=near_fences(trajectory, text_of) if objective.mask == "fence" else None
        )
        for (_, trajectory), advantage in zip(members, _advantages(members, objective), strict=True)
        if trajectory.stop_reason not in options.masked_stop_reasons
    ]
    return pack(examples, token_budget=options.token_budget, pad_id=pad_id)


def _advantages(members: Sequence[tuple[str, Trajectory]], objective: ObjectiveOptions) -> list[float]:
    keys = [key for key, _ in members]
    rewards = [trajectory.reward or 0.0 for _, trajectory in members]
    if objective.advantage != "pairwise":
        return group_advantages(rewards, keys, normalise=objective.advantage == "standardised")
    scores = [sum(trajectory.logprobs) for _, trajectory in members]
    return pairwise_advantages(rewards, keys, scores, tau=objective.lampo_tau, normalise=objective.lampo_normalise)


async def _finish_step(run: Training, options: TrainOptions, collection: Collection, metrics: Metrics) -> None:
    run.step += 1
    measured = {**rollout_metrics(collection.trajectories), **_counts(collection), **metrics}
    if _due(run.step, options.evaluate_every):
        measured |= await run.evaluate()
    run.log.trajectories(run.step, collection.trajectories)
    run.log.step(run.step, measured)
    run.progress.step(run.step, options.steps, measured)
    if _due(run.step, options.checkpoint_every):
        _save(run, options)


def _counts(collection: Collection) -> Metrics:
    dropped = {f"dropped/{name}": float(collection.dropped[name]) for name in DROPPED}
    return {**dropped, **{f"grade/{name}": float(collection.grades[name]) for name in OUTCOMES}}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _save(run: Training, options: TrainOptions) -> None:
    position = checkpoint.Position(run.step, run.stream.position, run.config)
    checkpoint.save(run.checkpoints, run.learner, run.tokenizer, position, keep=options.checkpoints_kept)

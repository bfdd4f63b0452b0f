"""The training loop. Everything it touches is opened elsewhere (`wiring`); each line of it is a stage of the journey.

    tasks -> rollouts with deferred cells -> reward -> group advantage -> batches -> objective -> optimiser -> weights

GRPO with the rollouts and the objective of IH-GRPO (arXiv 2605.18500). It departs from the reference code where groups
without signal are refilled, not oversampled threefold and replicated; where the longest trajectory of a batch is not
silently left out; and where a trajectory that a service failed is dropped, not scored 0.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from cellar_trainer import checkpoint
from cellar_trainer.learning.examples import to_examples
from cellar_trainer.learning.learner import Learner
from cellar_trainer.learning.model import ControlTokens
from cellar_trainer.learning.packing import Batch, Layout, pack
from cellar_trainer.rewards.alarm import AlarmOptions, RewardAlarm
from cellar_trainer.rollouts.collect import DROPPED, Collection
from cellar_trainer.rollouts.rollout import RolloutFailed
from cellar_trainer.rollouts.supply import Supply
from cellar_trainer.telemetry.metrics import RunLog, rollout_metrics, staleness_metrics
from cellar_trainer.telemetry.progress import Progress
from cellar_trainer.types import Metrics, StopReason
from cellar_trainer.weights import PublishFailed, WeightPublisher

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    steps: int = 100
    """Steps of the whole run, those before a resume included."""
    seed: int = 0
    """Of the order of tasks and of all sampling."""
    token_budget: int = 16_384
    """Most tokens, padding included, that go through the model at once: a step's gradient is put together from as many
    such micro-batches as it takes."""
    layout: Layout = "packed"
    """"packed" puts several sequences into a row; "padded" one, for models whose layers carry a state from one token to
    the next."""
    masked_stop_reasons: frozenset[StopReason] = frozenset({StopReason.VOID, StopReason.DEADLINE})
    """Trajectories that count in their group's mean but are not trained on: void turns make gradients explode (arXiv
    2509.02479), and who misses a deadline may have waited for a service."""
    overlap: Literal["off", "between", "in_flight"] = "off"
    """Whether the next step's trajectories are sampled while a step learns, by weights that are one step old. "between"
    sends new weights when these are all finished: a run can be repeated and resumed bit for bit. "in_flight" sends
    them at once: what is being sampled goes on with them."""
    max_staleness: Annotated[int, Field(ge=0)] = 1
    """Steps by which the weights that sampled a token may be older than those that learn from it; a trajectory with an
    older token is dropped. Overlap needs 1."""
    outage_patience_s: float = 600.0
    """How long a service that fails every rollout is waited for."""
    checkpoint_every: int = 0
    """Steps; 0 writes one at the end only."""
    checkpoints_kept: Annotated[int, Field(ge=1)] = 2
    """The newest; older ones are deleted."""
    evaluate_every: int = 0
    """Steps; 0 never evaluates."""


@dataclass(slots=True)
class Training:
    """One training run: what it works with, and how far it is."""

    supply: Supply
    learner: Learner
    publisher: WeightPublisher
    tokenizer: PreTrainedTokenizerBase
    tokens: ControlTokens
    log: RunLog
    progress: Progress
    checkpoints: Path
    evaluate: Callable[[], Awaitable[Metrics]]
    """Plays the evaluation tasks with the policy as it is."""
    alarm: RewardAlarm = field(default_factory=lambda: RewardAlarm(AlarmOptions()))
    config: dict[str, Any] = field(default_factory=dict)
    """As it is kept in checkpoints."""
    step: int = 0
    """Steps done; also the version of the weights that sample now."""

    async def publish(self) -> Metrics:
        """Have the policy sample with the learner's weights."""
        return await self.publisher.publish(self.learner, version=self.step)


async def train(run: Training, options: TrainOptions) -> None:
    """Train until `options.steps` steps are done, counting those of the runs that this one resumes.

    When a service is gone for good, what was learned is saved before its error is raised.
    """
    await run.publish()
    try:
        while run.step < options.steps:
            await _step(run, options)
    except (RolloutFailed, PublishFailed):
        if run.step > 0:
            _save(run, options)
        raise
    _save(run, options)


async def _step(run: Training, options: TrainOptions) -> None:
    before, started_s = run.step, time.perf_counter()
    collection = await run.supply.take(run.step, heal=run.publish)
    metrics = {"collect_s": time.perf_counter() - started_s}
    try:
        await _learn(run, options, to_batches(run, options, collection), metrics)
        if _due(run.step, options.evaluate_every):
            metrics |= await _evaluate(run)
    finally:
        if run.step > before:  # it was learned from, also when publishing failed then
            metrics["step_s"] = time.perf_counter() - started_s
            _log_step(run, options, collection, metrics)
    if _due(run.step, options.checkpoint_every):
        _save(run, options)


def to_batches(run: Training, options: TrainOptions, collection: Collection) -> list[Batch]:
    """The micro-batches of a step."""
    objective = run.learner.objective
    masked = options.masked_stop_reasons | run.supply.rollouts.reward.masked_stop_reasons
    examples = to_examples(collection.groups, run.tokenizer, objective, masked=masked)
    return pack(examples, token_budget=options.token_budget, pad_id=run.tokens.pad_id, layout=options.layout)


async def _learn(run: Training, options: TrainOptions, batches: list[Batch], metrics: dict[str, float]) -> None:
    """Learn, and publish what was learned; with overlap, while the next step's trajectories are sampled."""
    if options.overlap == "off" or run.step + 1 == options.steps:
        await _learn_and_publish(run, batches, metrics)
        return
    async with run.supply.sampling_ahead(run.step + 1) as sampling:
        await _learn_and_publish(run, batches, metrics, after=sampling if options.overlap == "between" else None)


async def _learn_and_publish(
    run: Training, batches: list[Batch], metrics: dict[str, float], after: Awaitable[None] | None = None
) -> None:
    started_s = time.perf_counter()
    # In a thread: rollouts that go on meanwhile need the event loop.
    metrics |= await asyncio.to_thread(run.learner.learn, batches)
    learned_s = time.perf_counter()
    if after is not None:
        await after
    metrics |= {"learn_s": learned_s - started_s, "overlap_wait_s": time.perf_counter() - learned_s}
    run.step += 1
    metrics |= await run.publish()


async def _evaluate(run: Training) -> Metrics:
    """Training does not end because nobody could be asked how well it goes."""
    try:
        return await run.evaluate()
    except RolloutFailed as failure:
        _log.warning("step %d is not evaluated: %s", run.step, failure)
        return {}


def _log_step(run: Training, options: TrainOptions, collection: Collection, metrics: Metrics) -> None:
    measured = {
        **rollout_metrics(collection.trajectories),
        **staleness_metrics(collection.trajectories, run.step - 1),
        **{f"dropped/{reason}": float(collection.dropped[reason]) for reason in DROPPED},
        **run.alarm.step(collection),
        **metrics,
    }
    run.log.trajectories(run.step, collection.trajectories)
    run.log.step(run.step, measured)
    run.progress.step(run.step, options.steps, measured)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _save(run: Training, options: TrainOptions) -> None:
    position = checkpoint.Position(run.step, run.supply.stream.position, run.config)
    checkpoint.save(
        run.checkpoints, run.learner, run.tokenizer, position, ahead=run.supply.ahead, keep=options.checkpoints_kept
    )

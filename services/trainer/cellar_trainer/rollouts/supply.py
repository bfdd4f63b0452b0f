"""Collections for the steps of training: sampled when they are needed, or one step ahead while the model learns."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cellar_trainer.rollouts.collect import Collection, CollectOptions, Rollouts, TaskStream, collect
from cellar_trainer.rollouts.rollout import RolloutFailed
from cellar_trainer.telemetry.progress import Progress

OUTAGE_PAUSE_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Supply:
    """Where a training step's trajectories come from. `stream.position` and `ahead` are its whole state.

    Args:
        max_staleness: steps by which the weights that sampled a token may be older than those that learn from it.
        patience_s: how long an outage of a service may last before training gives up.
    """

    stream: TaskStream
    rollouts: Rollouts
    options: CollectOptions
    progress: Progress
    seed: int = 0
    max_staleness: int = 1
    patience_s: float = 600.0
    ahead: Collection | None = None
    """Sampled already, for the step to come."""

    async def take(self, step: int, heal: Callable[[], Awaitable[object]]) -> Collection:
        """What the step after `step` finished ones learns from: the collection sampled ahead, or one sampled now.

        A service that is away fails every rollout, and so does a model server that was restarted and has lost its
        weights. Then `heal` is to give them to it again, and the same tasks are played again with the same seeds.
        Raises `RolloutFailed` when that has gone on for `patience_s`.
        """
        collection, self.ahead = self.ahead, None
        deadline: float | None = None
        while collection is None:
            try:
                collection = await self._sample(step)
            except RolloutFailed as failure:
                deadline = deadline or time.monotonic() + self.patience_s
                if time.monotonic() >= deadline:
                    raise
                _log.warning("%s; trying again until it has lasted %.0f s", failure, self.patience_s)
                await asyncio.sleep(OUTAGE_PAUSE_S)
                await heal()
        return collection

    @asynccontextmanager
    async def sampling_ahead(self, step: int) -> AsyncIterator[asyncio.Task[None]]:
        """Sample what `take(step)` will give while the body runs, and until it is there. Yields the task that does.

        When the services fail, nothing is ahead, and `take` finds out again.
        """
        sampling = asyncio.create_task(self._sample_ahead(step))
        try:
            yield sampling
            await sampling
        finally:
            sampling.cancel()
            await asyncio.wait({sampling})  # not to be waited for as itself: its error must not replace the body's

    async def _sample_ahead(self, step: int) -> None:
        try:
            self.ahead = await self._sample(step)
        except RolloutFailed as failure:
            _log.warning("nothing was sampled ahead: %s", failure)

    async def _sample(self, step: int) -> Collection:
        """Raises `RolloutFailed`, and leaves the stream where it was, when every rollout failed."""
        start = self.stream.position
        try:
            with self.progress.counting(f"step {step + 1}") as count:
                return await collect(
                    self.stream,
                    self.rollouts,
                    self.options,
                    seed=self.seed,
                    oldest_version=step - self.max_staleness,
                    on_done=count,
                )
        except BaseException:
            self.stream.position = start
            raise

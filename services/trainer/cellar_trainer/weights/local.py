"""For a policy in this process."""

import time

from cellar_trainer.policy.local import LocalPolicy
from cellar_trainer.types import Metrics
from cellar_trainer.weights.protocol import WeightSource


class LocalPublisher:
    """A copy in memory: nothing to prove."""

    def __init__(self, policy: LocalPolicy) -> None:
        self._policy = policy

    async def publish(self, source: WeightSource, version: int) -> Metrics:
        started_s = time.perf_counter()
        self._policy.load(source.weights(), version)
        return {"publish_s": time.perf_counter() - started_s}

    async def close(self) -> None:
        pass

"""The joint between rollouts and whatever samples tokens: nobody above it knows where generation runs."""

from collections.abc import Sequence
from typing import Protocol

from cellar_trainer.types import Completion, Sampling

LOGPROB_FLOOR = -100.0
"""The log-probability of what is as good as impossible: low, but finite, so that arithmetic on it stays finite."""


class PolicyUnavailable(Exception):
    """The policy gave no completion: a fault of the service, not of the model. Drop the trajectory."""


class Policy(Protocol):
    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue `token_ids` until a stop token or `max_tokens`. Raises `PolicyUnavailable`."""
        ...

    async def close(self) -> None: ...

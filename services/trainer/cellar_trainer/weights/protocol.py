"""The joints of publishing: who has the weights, who carries them, who sees to it that they arrive."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from torch import Tensor

from cellar_trainer.policy.vllm import VLLMControl
from cellar_trainer.types import Metrics

Send = Callable[[], Awaitable[None]]
Weights = Sequence[tuple[str, Tensor]]
"""Every weight of a model under Hugging Face's name, whole; a tied one once."""


class PublishFailed(Exception):
    """The policy's weights are not the model's, and what could be done about it was done; the message says what is
    left to do."""


class WeightSource(Protocol):
    """Whoever has the weights: the learner."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under Hugging Face's name: whole, detached, adapters merged in, tied ones once."""
        ...

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability at temperature 1 of each token after the first."""
        ...


class WeightPublisher(Protocol):
    async def publish(self, source: WeightSource, version: int) -> Metrics:
        """Make the policy sample with `source`'s weights, as `version`. Raises `PublishFailed`."""
        ...

    async def close(self) -> None: ...


class Transfer(Protocol):
    """How weights travel to a server that is paused and waits for them. Raises `ControlFailed`."""

    async def open(self, control: VLLMControl) -> None:
        """Meet the server's workers: before the first update, and again after each that failed."""
        ...

    def prepare(self, weight: Tensor) -> Tensor:
        """The weight where it is sent from: asked for each as it comes, since all of them may be too many for a GPU."""
        ...

    def carry(self, control: VLLMControl, weights: Weights) -> AbstractAsyncContextManager[Send]:
        """Make all ready, while the server still samples. What it gives then has the workers take `weights`; they stay
        where they are until the block ends, which is after the update has."""
        ...

    def drop(self) -> None:
        """Let go of what `open` made: after a failure, whatever state it is in. Never waits."""
        ...


def described(weights: Weights) -> dict[str, list[object]]:
    """Names, dtypes and shapes, as vLLM's engines want to be told them."""
    return {
        "names": [name for name, _ in weights],
        "dtype_names": [str(weight.dtype).removeprefix("torch.") for _, weight in weights],
        "shapes": [list(weight.shape) for _, weight in weights],
    }

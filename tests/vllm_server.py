"""One real vLLM server on a tiny model, for all tests that need one, and models to publish to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cellar_trainer.serving import DEFAULT_PYTHON, VLLMServer
from tests.tiny_model import save_tiny_model, tiny_model


@contextmanager
def tiny_vllm(folder: Path, *, tied: bool = True, **options: Any) -> Iterator[VLLMServer]:
    """Skips where vLLM's environment was not built. Tied embeddings are the harder case for new weights."""
    if not DEFAULT_PYTHON.exists():
        pytest.skip("no vLLM here: make setup-vllm builds its environment")
    model_dir = save_tiny_model(folder / "model", tied=tied)
    with VLLMServer(model_dir, log=folder / "vllm.log", threads=1, max_model_len=1024, **options) as server:
        yield server


class TinySource:
    """What the learner is to a publisher: a tiny model's weights and its log-probabilities."""

    def __init__(self, seed: int = 0, *, tied: bool = True) -> None:
        self.model = tiny_model(seed=seed, tied=tied)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight.detach()) for name, weight in self.model.named_parameters())

    def score(self, token_ids: Sequence[int]) -> list[float]:
        with torch.no_grad():
            logprobs_TV = self.model(torch.tensor([list(token_ids)])).logits[0, :-1].log_softmax(-1)
        scores: list[float] = logprobs_TV.gather(-1, torch.tensor(token_ids)[1:, None])[:, 0].tolist()
        return scores

"""One real vLLM server on a tiny model, for all tests that need one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cellar_trainer.serving import DEFAULT_PYTHON, VLLMServer
from tests.tiny_model import save_tiny_model


@contextmanager
def tiny_vllm(folder: Path) -> Iterator[VLLMServer]:
    """Skips where vLLM's environment was not built. The embeddings are tied, the harder case for new weights."""
    if not DEFAULT_PYTHON.exists():
        pytest.skip("no vLLM here: make setup-vllm builds its environment")
    model_dir = save_tiny_model(folder / "model", tied=True)
    with VLLMServer(model_dir, log=folder / "vllm.log", threads=1, max_model_len=1024) as server:
        yield server

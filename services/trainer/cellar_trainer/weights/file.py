"""Weights through a folder that trainer and server both see: on a RAM disk, as fast as memory."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from safetensors.torch import save_file

from cellar_trainer.policy.vllm import VLLMControl
from cellar_trainer.weights.protocol import Send, Weights

SHARED_MEMORY = Path("/dev/shm")


class FileTransfer:
    """A safetensors file, gone when the server has read it. Our own backend (deploy/vllm/cellar_weights.py).

    Args:
        directory: seen by both sides under this name; shared memory when left out.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()))

    async def open(self, control: VLLMControl) -> None:
        await control.open_transfer({})

    @asynccontextmanager
    async def carry(self, control: VLLMControl, weights: Weights) -> AsyncIterator[Send]:
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix="cellar-", suffix=".safetensors") as file:
            await asyncio.to_thread(_save, weights, Path(file.name))
            yield lambda: control.update({"path": file.name})

    def drop(self) -> None:
        pass


def _save(weights: Weights, path: Path) -> None:
    save_file({name: weight.cpu().contiguous() for name, weight in weights}, path)

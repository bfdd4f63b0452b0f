"""Weights through a folder that trainer and server both see: on a RAM disk, as fast as memory."""

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cellar_trainer.policy.vllm import ControlFailed, VLLMControl
from cellar_trainer.weights.protocol import Send, Weights

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "cellar-weights-"
FILE = "model.safetensors"


class FileTransfer:
    """A safetensors file, gone when the server has read it. Our own backend (deploy/vllm/cellar_weights.py).

    It has a folder of its own, locked as long as the trainer lives: what a killed one left behind is told by that.

    Args:
        directory: seen by both sides under this name; shared memory when left out.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()))

    async def open(self, control: VLLMControl) -> None:
        for folder in self._directory.glob(f"{PREFIX}*"):
            with suppress(OSError), _locked(folder):  # a living trainer's, or another user's
                shutil.rmtree(folder)
        await control.open_transfer({})

    def prepare(self, weight: Tensor) -> Tensor:
        return weight.cpu()

    @asynccontextmanager
    async def carry(self, control: VLLMControl, weights: Weights) -> AsyncIterator[Send]:
        with ExitStack() as held:
            try:
                folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, dir=self._directory)))
                held.enter_context(_locked(folder))
                await asyncio.to_thread(_save, weights, folder / FILE)
            except (OSError, SafetensorError) as error:
                raise ControlFailed(
                    f"policy.weights_dir: {self._directory} does not take the weights: {error}", refused=True
                ) from error
            yield lambda: control.update({"path": str(folder / FILE)})

    def drop(self) -> None:
        pass


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises `OSError` when somebody else has it locked. The system unlocks what a process that ended had locked."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _save(weights: Weights, path: Path) -> None:
    save_file({name: weight.contiguous() for name, weight in weights}, path)

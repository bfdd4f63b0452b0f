"""Training with several processes of one machine, as `torchrun` starts them.

    torchrun --nproc-per-node 2 -m cellar_trainer train CONFIG.toml

The first process, rank 0, is the run: it alone plays rollouts, publishes weights, keeps logs and checkpoints. The
others lend their memory and arithmetic: they `serve`, that is, they wait to be told which method of their learner to
call, since all have to call the same ones. They are told over a process group that is for this alone, on the CPU, and
waits as long as rollouts take; within a call nobody waits for anybody longer than `COLLECTIVE_TIMEOUT`. When a process
dies, torchrun ends the others; without torchrun they find its connection closed.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout

from cellar_trainer.learning.learner import Learner
from cellar_trainer.learning.packing import Batch

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""For a process that is slow, not one that is dead: gathering weights waits for whoever writes them out."""
COMMAND_TIMEOUT = timedelta(days=365)


class RankLost(ConnectionError):
    """Another process of the run is gone, and so the run is."""


def launched_ranks() -> int:
    """How many processes torchrun has started: their group may not exist yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that torchrun started with this one; in a process by itself, do nothing.

    On "cuda" each process gets the GPU of its number.
    """
    if launched_ranks() == 1:
        yield
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error: the others may never come


class Leader(Learner):
    """The learner of the first process: whatever it does, it has the others do too. One call at a time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._commands = _command_group()
        self._streamed: Iterator[Any] = iter(())
        self._in_step = True

    def learn(self, batches: Sequence[Batch]) -> dict[str, float]:
        with self._together("learn", batches):
            return super().learn(batches)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        self._tell(("weights", ()))
        self._streamed = super().weights()
        # Not `yield from`, which would close it when a consumer gives up half-way: the others go to its end.
        for weight in self._streamed:  # noqa: UP028
            yield weight

    def score(self, token_ids: Sequence[int]) -> list[float]:
        with self._together("score", token_ids):
            return super().score(token_ids)

    def save_model(self, folder: Path) -> None:
        with self._together("save_model", folder):
            super().save_model(folder)

    def state_dict(self) -> dict[str, Any]:
        with self._together("state_dict"):
            return super().state_dict()

    def dismiss(self) -> None:
        """Let the others go. After an error within a call they cannot be told, and are left to torchrun."""
        if self._in_step:
            self._tell(None)

    @contextmanager
    def _together(self, method: str, *arguments: Any) -> Iterator[None]:
        self._tell((method, arguments))
        self._in_step = False
        yield
        self._in_step = True

    def _tell(self, command: tuple[str, tuple[Any, ...]] | None) -> None:
        for _ in self._streamed:
            pass
        dist.broadcast_object_list([command], src=0, group=self._commands)


def serve(learner: Learner) -> None:
    """Do what the first process does with its learner, until it lets this one go. Raises `RankLost` when it is gone."""
    commands = _command_group()
    while (command := _next_command(commands)) is not None:
        method, arguments = command
        answer = getattr(learner, method)(*arguments)
        if isinstance(answer, Iterator):
            for _ in answer:
                pass


def _command_group() -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
    _set_pg_timeout(COMMAND_TIMEOUT, group)  # only now: a process that dies before it has joined is not noticed
    return group


def _next_command(group: dist.ProcessGroup) -> tuple[str, tuple[Any, ...]] | None:
    heard: list[Any] = [None]
    try:
        dist.broadcast_object_list(heard, src=0, group=group)
    except RuntimeError as error:
        raise RankLost(f"the first process of the run is gone: {error}") from error
    command: tuple[str, tuple[Any, ...]] | None = heard[0]
    return command

"""Weights by broadcast from the trainer, rank 0 of a group of its own, to the server's workers, ranks 1 and up.

A collective that lost a partner may hang, and NCCL's cannot even be told to give up. So it runs on a daemon thread,
while the HTTP call that has the workers join in decides how the transfer went; after an error nobody waits for it.
"""

import asyncio
import base64
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.cuda import nccl
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

from cellar_trainer.policy.vllm import ControlFailed, VLLMControl
from cellar_trainer.weights.protocol import Send, Weights, described

CHUNK_BYTES = 2**28
Gloo: Any = ProcessGroupGloo  # whose stubs lack half of it


class Group(Protocol):
    """The trainer's end of a group. `connect` and `broadcast` block, for ever if they must."""

    init_info: dict[str, Any]
    """What the workers have to know to join."""

    def connect(self) -> None: ...

    def update_info(self, weights: Weights) -> dict[str, Any]:
        """What the workers have to know to take part in `broadcast(weights)`."""
        ...

    def broadcast(self, weights: Weights) -> None: ...


class Broadcast:
    """A transfer by collectives.

    Args:
        make_group: gives a group of that many ranks, the trainer's included.
        from_gpu: whether the group sends what is in a GPU's memory, rather than in main memory.
    """

    def __init__(self, make_group: Callable[[int], Group], *, from_gpu: bool = False) -> None:
        self._make_group = make_group
        self._from_gpu = from_gpu
        self._group: Group | None = None

    async def open(self, control: VLLMControl) -> None:
        group = self._make_group(1 + await control.world_size())
        await _together(group.connect, control.open_transfer(group.init_info))
        self._group = group

    def prepare(self, weight: Tensor) -> Tensor:
        return weight if self._from_gpu else weight.cpu()

    @asynccontextmanager
    async def carry(self, control: VLLMControl, weights: Weights) -> AsyncIterator[Send]:
        group = self._group
        assert group is not None, "open comes first"
        yield lambda: _together(lambda: group.broadcast(weights), control.update(group.update_info(weights)))

    def drop(self) -> None:
        self._group = None


class GlooGroup:
    """Between CPUs, by our own backend (deploy/vllm/cellar_weights.py): all weights as one row of bytes, in few chunks.

    Args:
        host: the trainer's address as the workers see it.
        timeout_s: of each broadcast, on both sides.
    """

    def __init__(self, world_size: int, *, host: str, timeout_s: float) -> None:
        self._world_size = world_size
        self._host = host
        self._timeout = timedelta(seconds=timeout_s)
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        self._store = TCPStore(
            host,
            port,
            world_size,
            is_master=True,
            timeout=self._timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        self.init_info = {"host": host, "port": port, "world_size": world_size, "timeout_s": timeout_s}

    def connect(self) -> None:
        options = Gloo._Options()
        options._timeout = self._timeout
        options._devices = [Gloo.create_device(hostname=self._host)]
        self._group = Gloo(PrefixStore("weights", self._store), 0, self._world_size, options)

    def update_info(self, weights: Weights) -> dict[str, Any]:
        return {**described(weights), "chunk_bytes": CHUNK_BYTES}

    def broadcast(self, weights: Weights) -> None:
        row = torch.cat([_bytes(weight) for _, weight in weights])
        for chunk in row.split(CHUNK_BYTES):
            self._group.broadcast([chunk], BroadcastOptions()).wait()


class NCCLGroup:
    """Between GPUs, by vLLM's own backend `nccl`, weight by weight. One GPU cannot hold two ranks: there, use CUDA IPC.

    Written from vLLM 0.32's source and tested for what goes over HTTP alone: it has never run on GPUs.

    The workers join by a unique id that we make. vLLM then sums one element over the group to warm it up, which is a
    collective, so we do the same (vllm/distributed/device_communicators/pynccl.py, `from_unique_id_bytes`).
    """

    def __init__(self, world_size: int, *, device: torch.device) -> None:
        self._world_size = world_size
        self._device = device
        self._id: bytes = nccl.unique_id()
        self.init_info = {
            "nccl_unique_id_b64": base64.b64encode(self._id).decode(),
            "rank_offset": 1,
            "world_size": world_size,
            "packed": False,
        }

    def connect(self) -> None:
        with torch.cuda.device(self._device):
            self._communicators = [nccl.init_rank(self._world_size, self._id, 0)]
            nccl.all_reduce([torch.zeros(1, device=self._device)], comms=self._communicators)
            torch.cuda.synchronize()

    def update_info(self, weights: Weights) -> dict[str, Any]:
        return dict(described(weights))

    def broadcast(self, weights: Weights) -> None:
        with torch.cuda.device(self._device):
            whole = [weight.contiguous() for _, weight in weights]  # alive until all of it is sent
            for weight in whole:
                nccl.broadcast([weight], root=0, comms=self._communicators)
            torch.cuda.synchronize()


async def _together(collective: Callable[[], None], call: Awaitable[None]) -> None:
    """Run our half of a collective while `call` has the workers run theirs. The first error of either is raised."""
    ours = asyncio.wrap_future(_on_daemon_thread(collective))
    theirs = asyncio.ensure_future(call)
    try:
        await asyncio.wait({ours, theirs}, return_when=asyncio.FIRST_EXCEPTION)
        if ours.done() and (error := ours.exception()) is not None:
            raise ControlFailed(f"the trainer's half of the transfer failed: {error!r}", refused=True) from error
        await theirs
    finally:
        ours.cancel()
        theirs.cancel()


def _on_daemon_thread(work: Callable[[], None]) -> "Future[None]":
    """`asyncio.to_thread` would be waited for when the loop closes."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    done.set_running_or_notify_cancel()
    threading.Thread(target=run, daemon=True, name="weights").start()
    return done


def _bytes(weight: Tensor) -> Tensor:
    return weight.contiguous().view(-1).view(torch.uint8)

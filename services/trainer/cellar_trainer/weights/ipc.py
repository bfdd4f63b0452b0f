"""Weights on one GPU that trainer and server share: only handles to the memory travel (CUDA IPC)."""

import base64
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from cellar_trainer.policy.vllm import VLLMControl
from cellar_trainer.weights.protocol import Send, Weights, described


class IPCTransfer:
    """By vLLM's own backend `ipc`, unpacked: one handle for each weight.

    Written from vLLM 0.32's source and tested for what goes over HTTP alone: it has never run on a GPU.

    The server unpickles what it gets here: it needs `VLLM_ALLOW_INSECURE_SERIALIZATION=1` and a network to itself. Both
    sides need the same version of torch, which the handles' form depends on; in containers, the same IPC namespace.
    """

    async def open(self, control: VLLMControl) -> None:
        await control.open_transfer({"packed": False})

    def prepare(self, weight: Tensor) -> Tensor:
        return weight

    @asynccontextmanager
    async def carry(self, control: VLLMControl, weights: Weights) -> AsyncIterator[Send]:
        shared = [weight.contiguous() for _, weight in weights]  # a handle does not keep its memory alive
        for device in {weight.device for weight in shared}:
            torch.cuda.synchronize(device)  # the workers read from another process: what is written has to be there
        handles = [{_gpu(weight): reduce_tensor(weight)[1]} for weight in shared]
        pickled = base64.b64encode(pickle.dumps(handles)).decode()
        yield lambda: control.update({**described(weights), "ipc_handles_pickled": pickled})
        del shared

    def drop(self) -> None:
        torch.cuda.ipc_collect()


def _gpu(weight: Tensor) -> str:
    return str(torch.cuda.get_device_properties(weight.device).uuid)

"""Loaded into vLLM's workers (`--worker-extension-cls cellar_weights.CellarWeights`): how new weights come in.

The far end of `cellar_trainer.weights`. It lives in vLLM's environment and imports nothing of ours. Importing it
registers a weight-transfer backend beside vLLM's own, for files and for broadcasts between CPUs
(`--weight-transfer-config '{"backend": "cellar"}'`); the class adds what every backend needs, a way back out of an
update that did not end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from math import prod
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory


class CellarWeights:
    """Methods that vLLM's worker gets, for `POST /collective_rpc`."""

    def abandon_weight_update(self: Any) -> list[bool]:
        """End an update that was started and not finished, whoever started it. Returns whether there was one.

        Between start and finish the layers have no weights, and the next token would end the server. They get back
        those that they had, or, where an update had come to them, the new ones: a mixture, good for nothing but that
        the server lives and can be given all weights again.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        model = self.model_runner.get_model()
        unfinished = [info for info in map(get_layerwise_info, model.modules()) if info.can_load()]
        for info in unfinished:
            info.load_numel = 0
            info.loaded_weights.clear()
        if unfinished:
            with set_current_vllm_config(self.vllm_config):
                finalize_layerwise_reload(model, self.model_config)
                repack_tied_heads(model)
        self.weight_transfer_engine.reset_weight_update_target()
        self._weight_update_active = False
        return [bool(unfinished)]

    def served_dtype(self: Any) -> list[str]:
        """In what the model computes, as in `float32`."""
        return [str(self.model_config.dtype).removeprefix("torch.")]


@dataclass
class Init:
    """`init_info` of `POST /init_weight_transfer_engine`. For files there is nothing to agree on. For broadcasts, how
    to meet the trainer, which is rank 0 of the group and holds its store."""

    host: str | None = None
    port: int = 0
    world_size: int = 0
    timeout_s: float = 0.0
    """Of each broadcast: a trainer that has gone away does not block a worker for longer."""


@dataclass
class Update:
    """`update_info` of `POST /update_weights`: all weights, under Hugging Face's names."""

    path: str | None = None
    """A safetensors file. Without one, what comes by broadcast, in this order, is:"""
    names: list[str] = field(default_factory=list)
    dtype_names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    chunk_bytes: int = 0
    """The weights are one row of bytes, cut into broadcasts of this size."""


class CellarEngine(WeightTransferEngine[Init, Update]):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """A whole model at once: from a file, on a RAM disk as fast as memory, or over the network between CPUs."""

    init_info_cls = Init
    update_info_cls = Update
    group: ProcessGroupGloo | None = None

    def init_transfer_engine(self, init_info: Init) -> None:
        self.group = None  # one that an earlier trainer left behind
        if init_info.host is None:
            return
        size, timeout = init_info.world_size, timedelta(seconds=init_info.timeout_s)
        rank = (
            1 + self.parallel_config.data_parallel_index * self.parallel_config.world_size + self.parallel_config.rank
        )
        store = TCPStore(init_info.host, init_info.port, size, is_master=False, timeout=timeout)
        self.group = ProcessGroupGloo(PrefixStore("weights", store), rank, size, timeout)

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():  # vLLM's own method does not ask, and fails on CPU
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Update) -> None:
        if update_info.path is not None:
            self.model.load_weights(load_file(update_info.path).items())
        else:
            self.model.load_weights(self._broadcast_weights(update_info))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_heads(self.model)

    def shutdown(self) -> None:
        self.group = None

    def _broadcast_weights(self, update_info: Update) -> Iterator[tuple[str, torch.Tensor]]:
        if self.group is None:
            raise RuntimeError("no group: POST /init_weight_transfer_engine with an address comes first")
        dtypes = [getattr(torch, name) for name in update_info.dtype_names]
        sizes = [prod(shape) * dtype.itemsize for shape, dtype in zip(update_info.shapes, dtypes, strict=True)]
        row = torch.empty(sum(sizes), dtype=torch.uint8)
        for chunk in row.split(update_info.chunk_bytes):
            self.group.broadcast([chunk], BroadcastOptions()).wait()
        parts = zip(update_info.names, row.split(sizes), dtypes, update_info.shapes, strict=True)
        # A weight may begin at a byte that its dtype cannot be read from; a clone begins at the start of an allocation.
        return ((name, part.clone().view(dtype).view(shape)) for name, part, dtype, shape in parts)


def repack_tied_heads(model: torch.nn.Module) -> None:
    """Give a tied output head its new weights.

    On CPU vLLM keeps a packed copy of every linear layer. A reload packs again what it loads, but a tied head has no
    weight of its own to load and would go on answering with its old copy, without an error.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


if "cellar" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("cellar", CellarEngine)

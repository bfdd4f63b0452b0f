"""Loaded into vLLM's worker (`--worker-extension-cls cellar_weights.CellarWeights`): takes new weights from a file.

The far end of `cellar_trainer.weights`. It lives in vLLM's environment and imports nothing of ours. Importing it
registers the weight-transfer backend `file`, for which the server is started with `--weight-transfer-config
'{"backend":"file"}'`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory


class CellarWeights:
    """vLLM wants a class here; naming it is what gets this module imported."""


@dataclass
class FileInit:
    """`init_info` of `POST /init_weight_transfer_engine`: nothing to agree on."""


@dataclass
class FileUpdate:
    """`update_info` of `POST /update_weights`."""

    path: str
    """A safetensors file with every weight, under Hugging Face's names."""


class FileEngine(WeightTransferEngine[FileInit, FileUpdate]):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Weights through the file system: on a RAM disk, as fast as shared memory for a small model."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class would also call torch.accelerator.synchronize(), which fails where there is no accelerator.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdate) -> None:
        self.model.load_weights(load_file(update_info.path).items())

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_heads(self.model)

    def shutdown(self) -> None:
        pass


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


if "file" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("file", FileEngine)

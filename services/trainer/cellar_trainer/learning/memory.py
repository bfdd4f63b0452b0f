"""How much memory a step of training takes in each process, predicted without any: on tensors that are only shapes.

What is kept for the backward pass is counted, not guessed: the model runs once on such tensors, and what autograd saves
is added up. benchmarks/memory.py holds the prediction against a measurement.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cellar_trainer.learning.head import COLUMNS, ROWS
from cellar_trainer.learning.learner import ComputeType
from cellar_trainer.learning.lora import LoraOptions, add_adapters, merged_weights
from cellar_trainer.learning.model import decoder_layers, hidden_states

HEAD_TILES = 4
"""Tiles of logits that exist at once, in float32."""


class Shape(NamedTuple):
    """Of the largest micro-batch."""

    rows: int
    width: int

    @property
    def tokens(self) -> int:
        return self.rows * self.width


def shape_model(path: Path, *, dtype: str, lora: LoraOptions) -> PreTrainedModel:
    """The model as it is trained, without values. Raises what `add_adapters` does."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(path), dtype=getattr(torch, dtype)
        )
        if lora.rank:
            add_adapters(model, lora)
    return model


def predicted_memory(
    model: PreTrainedModel,
    batch: Shape,
    *,
    compute_dtype: ComputeType,
    activation_checkpointing: bool,
    ranks: int,
    sent_from_gpu: bool = False,
) -> dict[str, float]:
    """Bytes by use, in each of `ranks` processes, when they are most: at the head, with every layer's activations kept.

    Weights that are `sent_from_gpu` are copied there, all at once, where they are not the model's own as they stand.
    By then a step's gradients and activations are gone: what the copy takes beyond their room is `publishing`.

    `model` is from `shape_model`, and of no use afterwards.
    """
    weights, trained = _bytes(model), _bytes(model, trained_only=True)
    head = model.get_output_embeddings().weight
    layers = decoder_layers(model)
    gathered = 0 if ranks == 1 else max(_bytes(layer) for layer in layers) + weights - sum(map(_bytes, layers))
    copied = _made_to_publish(model, ranks) if sent_from_gpu else 0
    hidden_size = head.shape[1] * batch.tokens
    kept: float = _kept_for_backward(model, batch, getattr(torch, compute_dtype))
    in_a_layer = kept / len(layers)
    if activation_checkpointing:
        kept = in_a_layer + len(layers) * hidden_size * head.dtype.itemsize
    use = {
        "weights": weights / ranks + gathered,
        "gradients": trained / ranks,
        "optimiser": 2 * trained / ranks,
        "activations": kept + in_a_layer,  # whose gradients are about as large
        # The tiles; hidden states and their gradient; the gradient of the head before it is added to the others.
        "head": 4 * (HEAD_TILES * ROWS * COLUMNS + 2 * hidden_size) + (head.nbytes if head.requires_grad else 0),
    }
    return {**use, "publishing": max(0, copied - use["gradients"] - use["activations"] - use["head"])}


def _bytes(module: nn.Module, *, trained_only: bool = False) -> int:
    return sum(weight.nbytes for weight in module.parameters() if weight.requires_grad or not trained_only)


def _made_to_publish(model: PreTrainedModel, ranks: int) -> int:
    """Bytes of published weights that are not the model's own: all that are gathered, or have adapters merged in."""
    own = {weight.untyped_storage()._cdata for weight in model.parameters()}
    published = [weight for _, weight in merged_weights(model)]
    return sum(weight.nbytes for weight in published if ranks > 1 or weight.untyped_storage()._cdata not in own)


def _kept_for_backward(model: PreTrainedModel, batch: Shape, compute_dtype: torch.dtype) -> int:
    """Bytes that autograd saves in the layers, besides weights."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with FakeTensorMode():
        _on_cpu(model)
        weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
        inputs_BT = torch.zeros(batch, dtype=torch.long)
        positions_BT = torch.arange(batch.width).expand(batch)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", compute_dtype, enabled=compute_dtype != torch.float32),
        ):
            hidden_states(model, inputs_BT, positions_BT)
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)


def _on_cpu(model: PreTrainedModel) -> None:
    """Attention and autocast do on the CPU what they do on a GPU, but nothing for tensors of no device at all."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            values = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(module, name, nn.Parameter(values, weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))

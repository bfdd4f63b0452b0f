"""LoRA (arXiv 2106.09685): small adapters beside the model's linear layers are trained, its own weights are frozen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from cellar_trainer.learning.model import ModelUnusable
from cellar_trainer.learning.sharding import whole

_ADAPTER = "lora"
_BASE = ".base_layer."


@dataclass(frozen=True, slots=True)
class LoraOptions:
    rank: Annotated[int, Field(ge=0)] = 0
    """Of the adapters; 0 trains the model's own weights."""
    alpha: int = 32
    """What an adapter gives is multiplied by alpha / rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers to adapt, as in "q_proj". Embeddings and the head are never adapted."""


def add_adapters(model: PreTrainedModel, options: LoraOptions) -> None:
    """Freeze the model and put adapters, which change nothing yet, beside its linear layers; always the same ones.

    They are float32 whatever the model's own type: they are what small updates have to add up in. Raises
    `ModelUnusable` for names that no linear layer has.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and most runs do without

    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=0.0, target_modules=_targets(model, options)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inject_adapter_in_model(config, model, _ADAPTER)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight, whole, under the name that it has without adapters; these are merged in, in float32.

    The model itself is left as it is. Tied weights come once.
    """
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(_BASE)
        if layer and kind == "weight":
            yield f"{layer}.{kind}", _merged(whole(parameter), model.get_submodule(layer))
        elif _ADAPTER not in name.split("."):
            yield name.replace(_BASE, "."), whole(parameter)


def _targets(model: PreTrainedModel, options: LoraOptions) -> list[str]:
    """The linear layers of the model's body; head and gate are outside it."""
    body = f"{model.base_model_prefix}."
    linear = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and n.startswith(body)]
    if options.target_modules == "all-linear":
        return linear
    unknown = set(options.target_modules) - {_last(name) for name in linear}
    if unknown:
        raise ModelUnusable(
            f"lora.target_modules: no linear layer of the model's body is called {', '.join(sorted(unknown))}; "
            f"there are {', '.join(sorted({_last(name) for name in linear}))}"
        )
    return [name for name in linear if _last(name) in options.target_modules]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _merged(weight_OI: Tensor, layer: Any) -> Tensor:
    up_OR, down_RI = (whole(part[_ADAPTER].weight).float() for part in (layer.lora_B, layer.lora_A))
    scale: float = layer.scaling[_ADAPTER]
    return (weight_OI.float() + scale * (up_OR @ down_RI)).to(weight_OI.dtype)

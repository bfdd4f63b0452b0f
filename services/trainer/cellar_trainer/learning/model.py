"""The model that is trained: loading, its hidden states without logits, and the tokens that steer a rollout."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from cellar_trainer.learning.objectives.eh_grpo import load_gate

disable_progress_bar()  # of loading and saving: a flicker for small models, and noise in every log


class ModelUnusable(Exception):
    """The model or its tokenizer lacks something that deferred tool use needs."""


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """The ids that steer a rollout and a batch."""

    trigger_id: int
    eos_id: int
    pad_id: int


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(path)


def control_tokens(tokenizer: PreTrainedTokenizerBase, trigger: str) -> ControlTokens:
    """Find the control tokens. Raises `ModelUnusable` when the trigger is not exactly one token."""
    ids = tokenizer.encode(trigger, add_special_tokens=False)
    if len(ids) != 1:
        raise ModelUnusable(
            f"the trigger {trigger!r} is {len(ids)} tokens in this tokenizer, and has to be one: "
            f"add it with tokenizer.add_tokens([{trigger!r}]) and train its embedding, or name another in model.trigger"
        )
    if tokenizer.eos_token_id is None:
        raise ModelUnusable("the tokenizer names no end-of-sequence token")
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return ControlTokens(ids[0], tokenizer.eos_token_id, pad_id)


def load_model(path: Path, *, dtype: str, device: str) -> PreTrainedModel:
    """The causal language model under `path`, without dropout, so that sampling and training see the same function."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    load_gate(model, path)
    model.to(device)  # type: ignore[arg-type]  # its decorator hides the signature
    model.eval()
    return model


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks that most of the model is made of. Raises `ModelUnusable` when it does not say which these are."""
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelUnusable(f"{type(model).__name__} has no layers that could be checkpointed or sharded one by one")
    return layers


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass, which computes the rest again. Gradients stay the same.

    Raises `ModelUnusable` for a layer that would drop out values: Hugging Face checkpoints in training mode only.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in decoder_layers(model):
        if any("drop" in name and isinstance(value, float) and value > 0 for name, value in vars(layer).items()):
            raise ModelUnusable(f"{type(layer).__name__} has dropout: set it to 0 in the model's config.json")
        layer.training = True  # not of what is in it: attention, experts and dropout stay as they are in evaluation


def hidden_states(model: PreTrainedModel, inputs_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """The last hidden states [B, T, D]. The logits, by far the largest tensor, are never made here.

    A row may hold several sequences, each with positions from 0 on: what a step other than 1 separates does not see
    each other.
    """
    outputs = model.base_model(input_ids=inputs_BT, position_ids=positions_BT, use_cache=False)
    hidden_BTD: Tensor = outputs.last_hidden_state
    return hidden_BTD


def output_weight(model: PreTrainedModel) -> Tensor:
    """The weight [V, D] that turns hidden states into logits."""
    weight_VD: Tensor = model.get_output_embeddings().weight
    return weight_VD


@torch.no_grad()
def score(model: PreTrainedModel, token_ids: Sequence[int]) -> list[float]:
    """Log-probability of each token after the first: `len(token_ids) - 1` numbers."""
    inputs_BT = torch.tensor([token_ids], device=model.device)
    hidden_TD = hidden_states(model, inputs_BT, torch.arange(len(token_ids), device=model.device)[None])[0, :-1]
    logprobs_TV = (hidden_TD @ output_weight(model).T).float().log_softmax(-1)
    scores: list[float] = logprobs_TV.gather(-1, inputs_BT[0, 1:, None])[:, 0].tolist()
    return scores

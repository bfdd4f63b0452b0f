"""EH-GRPO: an explicit gate, a head of one unit beside the token head, on the same hidden states.

With theta_0 the gate's logit and q the softmax of the token head without the trigger's column, the policy is

    P(trigger) = 1 - sigmoid(theta_0),     P(i) = sigmoid(theta_0) q_i   for every other token i

It is what IH-GRPO claims to equal without a gate (arXiv 2605.18500). The token head's column of the trigger has no part
in it and never gets a gradient. A server that knows only the token head cannot sample it: `LocalPolicy` can.
"""

from math import log
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from cellar_trainer.learning.head import TokenScalars
from cellar_trainer.learning.objectives.tokens import SampledTokens, TokenTerms

GATE = "gate_head"
"""The gate's name within the model."""


def explicit_terms(
    scalars: TokenScalars, gate_logit_N: Tensor, tokens: SampledTokens, trigger_id: int, *, temperature: float = 1.0
) -> TokenTerms:
    """The sampled tokens under gate and token head: what the policy loss of any base then makes a loss of both."""
    is_trigger_N = tokens.targets_N == trigger_id
    gate_logit_N = gate_logit_N.to(scalars.log_z_N.dtype) / temperature
    run_N, go_on_N = F.logsigmoid(-gate_logit_N), F.logsigmoid(gate_logit_N)
    return TokenTerms(
        tokens,
        is_trigger_N=is_trigger_N,
        gate_logit_N=gate_logit_N,
        logprobs_N=torch.where(is_trigger_N, run_N, go_on_N + scalars.target_logit_N - scalars.log_z_N),
        trigger_logprobs_N=run_N,
    )


def explicit_logprobs(logits_NV: Tensor, gate_logit_N: Tensor, trigger_id: int, *, temperature: float = 1.0) -> Tensor:
    """The distribution to sample from, over the whole vocabulary: its log-probabilities sum to 1 with the trigger."""
    trigger = torch.tensor([trigger_id], device=logits_NV.device)
    low_NV = (logits_NV / temperature).index_fill(-1, trigger, float("-inf")).log_softmax(-1)
    gate_N1 = gate_logit_N.to(low_NV.dtype)[..., None] / temperature
    return (low_NV + F.logsigmoid(gate_N1)).index_copy(-1, trigger, F.logsigmoid(-gate_N1))


def attach_gate(model: PreTrainedModel, *, trigger_probability: float = 0.5) -> None:
    """Give the model a gate that knows nothing yet, unless it has one. It is trained, copied and saved with it.

    It is float32 at least, whatever the model's own type: one bias decides every turn, and small updates have to add up
    in it.
    """
    if gate_of(model) is None:
        gate = nn.Linear(
            model.config.hidden_size, 1, device=model.device, dtype=torch.promote_types(model.dtype, torch.float32)
        )
        nn.init.zeros_(gate.weight)
        nn.init.constant_(gate.bias, log((1 - trigger_probability) / trigger_probability))
        model.add_module(GATE, gate)


def load_gate(model: PreTrainedModel, folder: Path) -> None:
    """Give the model the gate that was saved with it in `folder`, if there is one: `from_pretrained` knows of none."""
    saved: dict[str, Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(GATE)]  # noqa: SIM118  it is no mapping
            saved |= {name.removeprefix(f"{GATE}."): tensors.get_tensor(name) for name in names}
    if saved:
        attach_gate(model)
        model.get_submodule(GATE).load_state_dict(saved)


def gate_of(model: PreTrainedModel) -> nn.Linear | None:
    return cast(nn.Linear | None, getattr(model, GATE, None))


def gate_logits(gate: nn.Linear, hidden_ND: Tensor) -> Tensor:
    """In the gate's own type, float32 at least, like everything that is computed of the token head."""
    logits_N1: Tensor = gate(hidden_ND.to(gate.weight.dtype))
    return logits_N1[..., 0]

"""One optimiser step from packed trajectories: the only place where gradients are made."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from cellar_trainer.learning.head import token_scalars
from cellar_trainer.learning.lora import LoraOptions, add_adapters, merged_weights
from cellar_trainer.learning.model import (
    ControlTokens,
    ModelUnusable,
    checkpoint_activations,
    decoder_layers,
    hidden_states,
    output_weight,
)
from cellar_trainer.learning.objectives import ObjectiveOptions, SampledTokens, policy_objective
from cellar_trainer.learning.objectives.eh_grpo import GATE, attach_gate, gate_logits, gate_of
from cellar_trainer.learning.objectives.measures import Measure, Sum, merge
from cellar_trainer.learning.objectives.normalisation import loss_weights, step_totals
from cellar_trainer.learning.packing import Batch
from cellar_trainer.learning.sharding import (
    dealt,
    merged_over_ranks,
    on_first_rank,
    rank,
    ranks,
    shard,
    share_of,
    whole,
)

ComputeType = Literal["float32", "bfloat16"]
TYPICAL_WEIGHT = 0.02
"""What linear layers are commonly initialised with, and stay near."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OptimiserOptions:
    """AdamW's."""

    learning_rate: float = 1e-6
    """LoRA's adapters take ten to a hundred times more."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How slowly the averages of gradients and of their squares forget."""
    weight_decay: float = 0.0
    """Share of each weight, times the learning rate, that a step takes away."""
    warmup_steps: int = 0
    """Optimiser steps over which the learning rate rises from 0; it is constant after them."""
    max_grad_norm: float = 1.0
    """Of all gradients together; longer ones are scaled down to it."""
    minibatches: int = 1
    """Optimiser steps made of one collection. With 1 the policy that learns is the policy that sampled."""


class Learner:
    """A model with its optimiser. For `eh_grpo` the model is given an explicit gate, unless it has one.

    In each of several processes (`sharding`) there is one, whose methods all of them have to call alike.

    Args:
        model: in main memory or on the device that trains it. It is changed in place, and not to be copied afterwards.
        temperature: of the sampling; the objective sees the same distribution.
        compute_dtype: what the model's layers multiply in; float32 leaves them alone, anything else is autocast's.
        activation_checkpointing: computes a layer's activations twice rather than keep them.
        device: that trains; the model's own when left out.

    Raises `ModelUnusable` when the model has a gate that the objective knows nothing of.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: ControlTokens,
        objective: ObjectiveOptions,
        options: OptimiserOptions,
        *,
        temperature: float,
        lora: LoraOptions = LoraOptions(),  # noqa: B008  it is frozen
        compute_dtype: ComputeType = "float32",
        activation_checkpointing: bool = False,
        device: str | None = None,
    ) -> None:
        if lora.rank:
            add_adapters(model, lora)
        else:
            _warn_of_lost_updates(model.dtype, options.learning_rate)
        if objective.name == "eh_grpo":
            attach_gate(model, trigger_probability=objective.gate_start)
            model.get_submodule(GATE).requires_grad_()
        elif gate_of(model) is not None:
            raise ModelUnusable(f"the model samples with an explicit gate, which {objective.name} would not train")
        if activation_checkpointing:
            checkpoint_activations(model)
        self.model = model
        self.objective = objective
        self._options = options
        self._adapted = lora.rank > 0
        self._forward = _Forward(model, tokens, objective, temperature, getattr(torch, compute_dtype))
        if ranks() > 1:
            # By itself the gate too: it may be of another type than what is beside it.
            gate = gate_of(model)
            parts = [*decoder_layers(model), *([gate] if gate is not None else [])]
            shard(self._forward, parts, device or model.device.type, methods=("score",))
        self._trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._optimiser = AdamW(
            self._trained.values(), lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay
        )
        self._schedule = LambdaLR(self._optimiser, self._warmed)

    def learn(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Train on all batches once, in `minibatches` optimiser steps, each of which minimises its weighted loss.

        Every process is given all batches, and computes its share of them. Returns the objective's measures;
        `policy_loss`, `hierarchical_loss` and their sum `loss`, means over optimiser steps; `grad_norm` (the largest,
        before clipping), `tokens_trained` and `learning_rate` (the last step's); nothing when there are no batches. The
        value of `hierarchical_loss`, and so of `loss`, has no meaning (docs/algorithm.md).
        """
        measures: dict[str, Measure] = {}
        norms: list[float] = []
        tokens = learning_rate = 0.0
        for minibatch in _split(batches, self._options.minibatches):
            totals = step_totals((batch.loss_mask_BT, batch.sequences_BT) for batch in minibatch)
            share, missing = dealt(minibatch)
            for batch in share:
                weights_BT = loss_weights(batch.loss_mask_BT, batch.sequences_BT, totals, self.objective)
                merge(measures, self._backward(batch, weights_BT))
            for _ in range(missing):  # all ranks have to gather and sum as often
                blank = _blank(minibatch[0])
                self._backward(blank, torch.zeros_like(blank.loss_mask_BT))
            learning_rate = self._learning_rate
            norms.append(self._update())
            tokens += totals.tokens
        if not norms:
            return {}
        metrics = {name: float(measure) for name, measure in merged_over_ranks(measures).items()}
        policy_loss, hierarchical_loss = (metrics[name] / len(norms) for name in ("policy_loss", "hierarchical_loss"))
        return {
            **metrics,
            "loss": policy_loss + hierarchical_loss,
            "policy_loss": policy_loss,
            "hierarchical_loss": hierarchical_loss,
            "tokens_trained": tokens,
            "grad_norm": max(norms),
            "learning_rate": learning_rate,
        }

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under Hugging Face's names, whole, adapters merged in, tied weights once.

        A weight may share its memory with the model's, and is the model's only until the next `learn`.
        """
        return merged_weights(self.model)

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities at temperature 1 of each token after the first, as training computes them."""
        scores: list[float] = self._forward.score(torch.tensor(token_ids)).tolist()
        return scores

    def save_model(self, folder: Path) -> None:
        """Write a Hugging Face folder with `weights`, as it can be served. All processes call it, the first writes."""
        weights = {name: weight.cpu() for name, weight in merged_weights(self.model) if rank() == 0}
        if rank() == 0:
            kept = self.model.state_dict().keys()
            buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in kept}
            self.model.save_pretrained(folder, state_dict={**weights, **buffers})

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides the folder that `save_model` writes: with LoRA, also the adapters.

        It says nothing of how many processes there are; the tensors are in the first one's.
        """
        optimiser = self._optimiser.state_dict()
        optimiser["state"] = {
            number: {name: on_first_rank(value) for name, value in state.items()}
            for number, state in optimiser["state"].items()
        }
        adapters = {name: on_first_rank(weight) for name, weight in self._trained.items()} if self._adapted else {}
        return {"optimiser": optimiser, "schedule": self._schedule.state_dict(), "adapters": adapters}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, which all processes are given whole. With LoRA the model is the one it started from.

        The optimiser's options are this learner's, not those that `state` was made with. Raises `ModelUnusable` when
        the adapters are others.
        """
        self._check_adapters(state["adapters"])
        for name, weight in state["adapters"].items():
            self._trained[name].copy_(share_of(weight, self._trained[name]))
        optimiser = dict(state["optimiser"])
        optimiser["state"] = {
            number: {name: share_of(value, weight) for name, value in optimiser["state"][number].items()}
            for number, weight in enumerate(self._trained.values())
            if number in optimiser["state"]
        }
        optimiser["param_groups"] = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict(optimiser)
        self._schedule.load_state_dict({**state["schedule"], "base_lrs": self._schedule.base_lrs})
        self._learning_rate = self._options.learning_rate * self._warmed(self._schedule.last_epoch)

    def _check_adapters(self, saved: dict[str, Tensor]) -> None:
        own = self._trained if self._adapted else {}
        if _rank(saved) != _rank(own):
            raise ModelUnusable(f"lora.rank: the checkpoint has adapters of rank {_rank(saved)}, not {_rank(own)}")
        if saved.keys() != own.keys():
            raise ModelUnusable("lora.target_modules or objective.name: the checkpoint was trained with others")

    def _warmed(self, step: int) -> float:
        return min(1.0, (step + 1) / (self._options.warmup_steps + 1))

    @property
    def _learning_rate(self) -> float:
        """Of the next optimiser step."""
        return float(self._optimiser.param_groups[0]["lr"])

    @_learning_rate.setter
    def _learning_rate(self, value: float) -> None:
        self._optimiser.param_groups[0]["lr"] = value

    def _backward(self, batch: Batch, weights_BT: Tensor) -> dict[str, Measure]:
        """Add the batch's share of the optimiser step's gradient."""
        loss: Tensor
        measures: dict[str, Measure]
        loss, measures = self._forward(batch, weights_BT)
        loss.backward()
        return measures

    def _update(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._options.max_grad_norm)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad()
        return float(whole(norm))


class _Forward(nn.Module):
    """All that reads weights, so that where these are sharded, `forward` and `score` find them gathered."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: ControlTokens,
        objective: ObjectiveOptions,
        temperature: float,
        compute: torch.dtype,
    ) -> None:
        super().__init__()
        self.model = model
        self._tokens = tokens
        self._objective = objective
        self._temperature = temperature
        self._compute = compute

    def forward(self, batch: Batch, weights_BT: Tensor) -> tuple[Tensor, dict[str, Measure]]:
        """The weighted sum of the losses, and the objective's measures beside its two parts."""
        hidden_BTD = self._hidden_states(batch.inputs_BT, batch.positions_BT)
        hidden_ND = _sampled(batch, hidden_BTD, hidden_BTD.device)
        gate = gate_of(self.model)
        losses, measures = policy_objective(
            hidden_ND,
            output_weight(self.model),
            sampled_tokens(batch, hidden_BTD.device),
            self._tokens.trigger_id,
            self._objective,
            temperature=self._temperature,
            gate_logit_N=None if gate is None else gate_logits(gate, hidden_ND),
        )
        weights_N = _sampled(batch, weights_BT, hidden_BTD.device)
        policy_loss, hierarchical_loss = (Sum((weights_N * loss_N).sum().detach()) for loss_N in losses)
        loss = (weights_N * (losses.policy_N + losses.hierarchical_N)).sum()
        return loss, {**measures, "policy_loss": policy_loss, "hierarchical_loss": hierarchical_loss}

    @torch.no_grad()
    def score(self, ids_T: Tensor) -> Tensor:
        """Log-probabilities at temperature 1 of each token after the first, under the token head."""
        hidden_TD = self._hidden_states(ids_T[None, :-1], torch.arange(len(ids_T) - 1)[None])[0]
        targets_T = ids_T[1:].to(hidden_TD.device)
        scalars = token_scalars(hidden_TD, output_weight(self.model), targets_T, self._tokens.trigger_id)
        return scalars.target_logit_N - torch.logaddexp(scalars.log_z_N, scalars.trigger_logit_N)

    def _hidden_states(self, inputs_BT: Tensor, positions_BT: Tensor) -> Tensor:
        device = self.model.device
        with torch.autocast(device.type, self._compute, enabled=self._compute != torch.float32):
            hidden_BTD = hidden_states(self.model, inputs_BT.to(device), positions_BT.to(device))
        # Residuals stay as exact as the weights; the head multiplies in what it is given.
        return hidden_BTD if self._compute == torch.float32 else hidden_BTD.to(self._compute)


def _rank(adapters: Mapping[str, Tensor]) -> int:
    return next((weight.shape[0] for name, weight in adapters.items() if "lora_A" in name.split(".")), 0)


def _warn_of_lost_updates(dtype: torch.dtype, learning_rate: float) -> None:
    """AdamW moves a weight by about the learning rate at a time; of less than half its last bit nothing is kept."""
    least = TYPICAL_WEIGHT * torch.finfo(dtype).eps / 2
    if dtype.itemsize < 4 and learning_rate < least:
        _log.warning(
            "optimiser.learning_rate %g is too small for %s weights: steps below about %.0e are rounded away. "
            'Train float32 weights, with model.compute_dtype = "bfloat16" for speed, or LoRA',
            learning_rate,
            str(dtype).removeprefix("torch."),
            least,
        )


def sampled_tokens(batch: Batch, device: torch.device) -> SampledTokens:
    """The tokens of a batch that are trained on, row by row."""
    return SampledTokens(
        targets_N=_sampled(batch, batch.targets_BT, device),
        old_logprobs_N=_sampled(batch, batch.logprobs_BT, device),
        old_trigger_logprobs_N=_sampled(batch, batch.trigger_logprobs_BT, device),
        advantages_N=_sampled(batch, batch.advantages_BT, device),
        sequences_N=_sampled(batch, batch.sequences_BT, device),
        near_fence_N=_sampled(batch, batch.near_fence_BT, device),
    )


def _sampled(batch: Batch, values_BT: Tensor, device: torch.device) -> Tensor:
    return values_BT.to(device)[batch.loss_mask_BT.to(device).bool()]


def _blank(batch: Batch) -> Batch:
    """One token, of which nothing is to be learned."""
    corner = Batch(**{field.name: getattr(batch, field.name)[:1, :1] for field in fields(Batch)})
    return replace(corner, loss_mask_BT=torch.ones_like(corner.loss_mask_BT))


def _split(batches: Sequence[Batch], count: int) -> Iterator[Sequence[Batch]]:
    """Deal the batches, which come longest first, into at most `count` minibatches of like lengths."""
    for start in range(min(count, len(batches))):
        yield batches[start::count]

"""One optimiser step from packed trajectories: the only place where gradients are made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from cellar_trainer.model import ControlTokens, ModelUnusable, hidden_states, output_weight
from cellar_trainer.objectives import Losses, ObjectiveOptions, SampledTokens, policy_objective
from cellar_trainer.objectives.eh_grpo import attach_gate, gate_logits, gate_of
from cellar_trainer.objectives.measures import Measure, Sum, merge
from cellar_trainer.objectives.normalisation import StepTotals, loss_weights, step_totals
from cellar_trainer.packing import Batch


@dataclass(frozen=True, slots=True)
class OptimiserOptions:
    learning_rate: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    """Optimiser steps over which the learning rate rises from 0; it is constant after them."""
    max_grad_norm: float = 1.0
    minibatches: int = 1
    """Optimiser steps made of one collection. With 1 the policy that learns is the policy that sampled."""


class Learner:
    """A model with its optimiser. For `eh_grpo` the model is given an explicit gate, unless it has one.

    Args:
        temperature: of the sampling; the objective sees the same distribution.

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
    ) -> None:
        if objective.name == "eh_grpo":
            attach_gate(model, trigger_probability=objective.gate_start)
        elif gate_of(model) is not None:
            raise ModelUnusable(f"the model samples with an explicit gate, which {objective.name} would not train")
        self.model = model
        self.objective = objective
        self._tokens = tokens
        self._options = options
        self._temperature = temperature
        self._optimiser = AdamW(
            model.parameters(), lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay
        )
        warmup = options.warmup_steps
        self._schedule = LambdaLR(self._optimiser, lambda step: min(1.0, (step + 1) / (warmup + 1)))

    def learn(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Train on all batches once, in `minibatches` optimiser steps, each of which minimises its weighted loss.

        Returns the objective's measures; `policy_loss`, `hierarchical_loss` and their sum `loss`, means over optimiser
        steps; `grad_norm` (the largest, before clipping), `tokens_trained` and `learning_rate`; nothing when there are
        no batches. The value of `hierarchical_loss`, and so of `loss`, has no meaning (docs/algorithm.md).
        """
        measures: dict[str, Measure] = {}
        norms: list[float] = []
        tokens = 0.0
        for minibatch in _split(batches, self._options.minibatches):
            totals = step_totals(batch.loss_mask_BT for batch in minibatch)
            for batch in minibatch:
                merge(measures, self._backward(batch, totals))
            norms.append(self._update())
            tokens += totals.tokens
        if not norms:
            return {}
        metrics = {name: float(measure) for name, measure in measures.items()}
        policy_loss, hierarchical_loss = (metrics[name] / len(norms) for name in ("policy_loss", "hierarchical_loss"))
        return {
            **metrics,
            "loss": policy_loss + hierarchical_loss,
            "policy_loss": policy_loss,
            "hierarchical_loss": hierarchical_loss,
            "tokens_trained": tokens,
            "grad_norm": max(norms),
            "learning_rate": float(self._schedule.get_last_lr()[0]),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides the model's weights."""
        return {"optimiser": self._optimiser.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])

    def _backward(self, batch: Batch, totals: StepTotals) -> dict[str, Measure]:
        """Add the batch's share of the optimiser step's gradient."""
        device = self.model.device
        hidden_BTD = hidden_states(self.model, batch.inputs_BT.to(device), batch.attention_mask_BT.to(device))
        losses, measures = self._losses(hidden_BTD, batch)
        weights_N = _sampled(batch, loss_weights(batch.loss_mask_BT, totals, self.objective), device)
        (weights_N * (losses.policy_N + losses.hierarchical_N)).sum().backward()
        policy_loss, hierarchical_loss = (Sum((weights_N * loss_N).sum().detach()) for loss_N in losses)
        return {**measures, "policy_loss": policy_loss, "hierarchical_loss": hierarchical_loss}

    def _losses(self, hidden_BTD: Tensor, batch: Batch) -> tuple[Losses, dict[str, Measure]]:
        device = hidden_BTD.device
        hidden_ND = _sampled(batch, hidden_BTD, device)
        gate = gate_of(self.model)
        return policy_objective(
            hidden_ND,
            output_weight(self.model),
            sampled_tokens(batch, device),
            self._tokens.trigger_id,
            self.objective,
            temperature=self._temperature,
            gate_logit_N=None if gate is None else gate_logits(gate, hidden_ND),
        )

    def _update(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._options.max_grad_norm)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad()
        return float(norm)


def sampled_tokens(batch: Batch, device: torch.device) -> SampledTokens:
    """The tokens of a batch that are trained on, row by row."""
    rows_BT = torch.arange(len(batch.loss_mask_BT))[:, None].expand_as(batch.loss_mask_BT)
    return SampledTokens(
        targets_N=_sampled(batch, batch.targets_BT, device),
        old_logprobs_N=_sampled(batch, batch.logprobs_BT, device),
        old_trigger_logprobs_N=_sampled(batch, batch.trigger_logprobs_BT, device),
        advantages_N=_sampled(batch, batch.advantages_BT, device),
        sequences_N=_sampled(batch, rows_BT, device),
        near_fence_N=_sampled(batch, batch.near_fence_BT, device),
    )


def _sampled(batch: Batch, values_BT: Tensor, device: torch.device) -> Tensor:
    return values_BT.to(device)[batch.loss_mask_BT.to(device).bool()]


def _split(batches: Sequence[Batch], count: int) -> Iterator[Sequence[Batch]]:
    """Deal the batches, which come longest first, into at most `count` minibatches of like lengths."""
    for start in range(min(count, len(batches))):
        yield batches[start::count]

"""One optimiser step from packed trajectories: the only place where gradients are made."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from cellar_trainer.model import ControlTokens, hidden_states, output_weight
from cellar_trainer.objectives import ObjectiveOptions, policy_objective
from cellar_trainer.packing import Batch
from cellar_trainer.types import Metrics


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
    """A model with its optimiser.

    Args:
        temperature: of the sampling; the objective sees the same distribution.
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
        self.model = model
        self._tokens = tokens
        self._objective = objective
        self._options = options
        self._temperature = temperature
        self._optimiser = AdamW(
            model.parameters(), lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay
        )
        warmup = options.warmup_steps
        self._schedule = LambdaLR(self._optimiser, lambda step: min(1.0, (step + 1) / (warmup + 1)))

    def learn(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Train on all batches once. The loss of an optimiser step is the mean over its sampled tokens.

        Returns the mean of each of the objective's metrics over tokens, `loss`, `grad_norm` (the largest, before
        clipping), `tokens_trained` and `learning_rate`; nothing when there are no batches.
        """
        sums: dict[str, float] = defaultdict(float)
        norms: list[float] = []
        for minibatch in _split(batches, self._options.minibatches):
            count = sum(float(batch.loss_mask_BT.sum()) for batch in minibatch)
            for batch in minibatch:
                _add(sums, self._backward(batch, count))
            norms.append(self._update())
        tokens = sums.pop("tokens_trained", 0.0)
        if not tokens:
            return {}
        means = {name: value if name.endswith("_max") else value / tokens for name, value in sums.items()}
        rate = self._schedule.get_last_lr()[0]
        return {**means, "tokens_trained": tokens, "grad_norm": max(norms), "learning_rate": float(rate)}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides the model's weights."""
        return {"optimiser": self._optimiser.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])

    def _backward(self, batch: Batch, minibatch_tokens: float) -> dict[str, float]:
        """Add the batch's share of the minibatch's gradient; return its metrics, those that are means as sums."""
        device = self.model.device
        mask_BT = batch.loss_mask_BT.to(device).bool()
        hidden_BTD = hidden_states(self.model, batch.inputs_BT.to(device), batch.attention_mask_BT.to(device))

        def sampled(values_BT: Tensor) -> Tensor:
            return values_BT.to(device)[mask_BT]

        loss_N, metrics = policy_objective(
            hidden_BTD[mask_BT],
            output_weight(self.model),
            sampled(batch.targets_BT),
            sampled(batch.logprobs_BT),
            sampled(batch.trigger_logprobs_BT),
            sampled(batch.advantages_BT),
            self._tokens.trigger_id,
            self._objective,
            temperature=self._temperature,
        )
        loss = loss_N.sum()
        (loss / minibatch_tokens).backward()
        tokens = len(loss_N)
        return {
            "tokens_trained": float(tokens),
            "loss": loss.item(),
            **{name: value.item() * (1 if name.endswith("_max") else tokens) for name, value in metrics.items()},
        }

    def _update(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._options.max_grad_norm)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad()
        return float(norm)


def _split(batches: Sequence[Batch], count: int) -> Iterator[Sequence[Batch]]:
    """Deal the batches, which come longest first, into at most `count` minibatches of like lengths."""
    for start in range(min(count, len(batches))):
        yield batches[start::count]


def _add(sums: dict[str, float], more: Metrics) -> None:
    for name, value in more.items():
        sums[name] = max(sums[name], value) if name.endswith("_max") else sums[name] + value

"""A policy in this process, for tests and for machines without vLLM: exact, repeatable, and slow."""

import asyncio
import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from cellar_trainer.learning.objectives.eh_grpo import GATE, attach_gate, explicit_logprobs, gate_logits, gate_of
from cellar_trainer.policy.protocol import LOGPROB_FLOOR, PolicyUnavailable
from cellar_trainer.types import Completion, FinishReason, Sampling


class LocalPolicy:
    """A copy of a causal language model, with its explicit gate if it has one, that samples one request at a time.

    Requests are not batched: a batch's make-up would depend on timing and change the last bits of the
    log-probabilities, and then no run could be repeated bit for bit.
    """

    def __init__(self, model: PreTrainedModel, version: int = 0) -> None:
        self._serving = (copy.deepcopy(model).eval(), version)
        self._turn = asyncio.Lock()

    @property
    def context_tokens(self) -> int:
        """Most tokens, sampled ones included, that the model can see."""
        return int(self._serving[0].config.max_position_embeddings)

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Sample with these weights, all of the model's by name, from the next token on.

        They may have a gate that the model has not. Raises `ValueError` when they are not the model's.
        """
        given = dict(weights)
        model = copy.deepcopy(self._serving[0])  # the other may be in the middle of a token
        if any(name.startswith(GATE) for name in given):
            attach_gate(model)
        own = dict(model.named_parameters())
        if own.keys() != given.keys():
            raise ValueError(f"not this model's weights: {', '.join(sorted(own.keys() ^ given.keys()))}")
        for name, weight in given.items():
            own[name].copy_(weight)
        self._serving = (model, version)

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue `token_ids`. Raises `PolicyUnavailable` when they and `max_tokens` exceed the model's context."""
        if len(token_ids) + sampling.max_tokens > self.context_tokens:
            raise PolicyUnavailable(
                f"{len(token_ids)} + {sampling.max_tokens} tokens exceed the model's context of {self.context_tokens}"
            )
        async with self._turn:
            return await asyncio.to_thread(self._sample, token_ids, sampling)

    async def close(self) -> None:
        pass

    @torch.no_grad()
    def _sample(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        model, version = self._serving
        generator = torch.Generator(model.device)
        if sampling.seed is not None:
            generator.manual_seed(sampling.seed)
        cache = DynamicCache(config=model.config)
        inputs_T = torch.tensor(prompt_ids, device=model.device)
        token_ids: list[int] = []
        logprobs: list[float] = []
        trigger_logprobs: list[float] = []
        versions: list[int] = []
        while len(token_ids) < sampling.max_tokens:
            if self._serving[0] is not model:  # what the old weights have computed is computed again
                model, version = self._serving
                cache = DynamicCache(config=model.config)
                inputs_T = torch.tensor([*prompt_ids, *token_ids], device=model.device)
            logprobs_V = _next_logprobs(model, inputs_T, cache, sampling)
            inputs_T = torch.multinomial(logprobs_V.exp(), 1, generator=generator)
            token_ids.append(int(inputs_T))
            logprobs.append(float(logprobs_V[inputs_T]))
            trigger_logprobs.append(_floored(logprobs_V, sampling.trigger_id))
            versions.append(version)
            if token_ids[-1] in sampling.stop_token_ids:
                break
        stopped = token_ids[-1] in sampling.stop_token_ids
        return Completion(
            token_ids=tuple(token_ids),
            logprobs=tuple(logprobs),
            trigger_logprobs=tuple(trigger_logprobs),
            policy_versions=tuple(versions),
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            stop_token_id=token_ids[-1] if stopped else None,
        )


def _next_logprobs(model: PreTrainedModel, inputs_T: Tensor, cache: DynamicCache, sampling: Sampling) -> Tensor:
    gate = gate_of(model)
    outputs = model(
        input_ids=inputs_T[None], past_key_values=cache, use_cache=True, output_hidden_states=gate is not None
    )
    logits_V: Tensor = outputs.logits[0, -1].float()
    if gate is None:
        return (logits_V / sampling.temperature).log_softmax(-1)
    if sampling.trigger_id is None:
        raise ValueError("the gate's probability is the trigger's: the sampling has to name it")
    gate_logit = gate_logits(gate, outputs.hidden_states[-1][0, -1])
    return explicit_logprobs(logits_V, gate_logit, sampling.trigger_id, temperature=sampling.temperature)


def _floored(logprobs_V: Tensor, trigger_id: int | None) -> float:
    return LOGPROB_FLOOR if trigger_id is None else max(float(logprobs_V[trigger_id]), LOGPROB_FLOOR)

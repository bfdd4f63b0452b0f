"""A policy in this process, for tests and for machines without vLLM: exact, repeatable, and slow."""

import asyncio
import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from cellar_trainer.objectives.eh_grpo import explicit_logprobs, gate_logits, gate_of
from cellar_trainer.policy.protocol import LOGPROB_FLOOR, PolicyUnavailable
from cellar_trainer.types import Completion, FinishReason, Sampling


class LocalPolicy:
    """A copy of a causal language model, with its explicit gate if it has one, that samples one request at a time.

    Requests are not batched: a batch's make-up would depend on timing and change the last bits of the
    log-probabilities, and then no run could be repeated bit for bit.
    """

    def __init__(self, model: PreTrainedModel, version: int = 0) -> None:
        self._model = copy.deepcopy(model).eval()
        self._version = version
        self._turn = asyncio.Lock()

    def load(self, model: PreTrainedModel, version: int) -> None:
        """Sample with `model`'s weights from now on."""
        self._model.load_state_dict(model.state_dict())
        self._version = version

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue `token_ids`. Raises `PolicyUnavailable` when they and `max_tokens` exceed the model's context."""
        if len(token_ids) + sampling.max_tokens > self._model.config.max_position_embeddings:
            raise PolicyUnavailable(
                f"{len(token_ids)} + {sampling.max_tokens} tokens exceed the model's context "
                f"of {self._model.config.max_position_embeddings}"
            )
        async with self._turn:
            return await asyncio.to_thread(self._sample, token_ids, sampling)

    async def close(self) -> None:
        pass

    @torch.no_grad()
    def _sample(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        generator = torch.Generator(self._model.device)
        if sampling.seed is not None:
            generator.manual_seed(sampling.seed)
        cache = DynamicCache(config=self._model.config)
        inputs_T = torch.tensor(prompt_ids, device=self._model.device)
        token_ids: list[int] = []
        logprobs: list[float] = []
        trigger_logprobs: list[float] = []
        while len(token_ids) < sampling.max_tokens:
            logprobs_V = self._next_logprobs(inputs_T, cache, sampling)
            inputs_T = torch.multinomial(logprobs_V.exp(), 1, generator=generator)
            token_ids.append(int(inputs_T))
            logprobs.append(float(logprobs_V[inputs_T]))
            trigger_logprobs.append(_floored(logprobs_V, sampling.trigger_id))
            if token_ids[-1] in sampling.stop_token_ids:
                break
        stopped = token_ids[-1] in sampling.stop_token_ids
        return Completion(
            token_ids=tuple(token_ids),
            logprobs=tuple(logprobs),
            trigger_logprobs=tuple(trigger_logprobs),
            policy_versions=(self._version,) * len(token_ids),
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            stop_token_id=token_ids[-1] if stopped else None,
        )

    def _next_logprobs(self, inputs_T: Tensor, cache: DynamicCache, sampling: Sampling) -> Tensor:
        gate = gate_of(self._model)
        outputs = self._model(
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

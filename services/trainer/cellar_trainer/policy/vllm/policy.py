"""Sampling from a vLLM server: between the rollout and the model server."""

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Any

import httpx

from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.policy.vllm import wire
from cellar_trainer.policy.vllm.control import VLLMControl, connection
from cellar_trainer.types import Completion, Sampling

RETRY_PAUSE_S = 0.2


class VLLMPolicy:
    """A policy served by vLLM.

    Args:
        url: root of the server, without `/v1`.
        model: the name it serves the model under.
        timeout_s: longest wait for one completion.
        retries: how often a request whose connection broke is sent again. Sampling is seeded, so a repeat is the same.
        unpublished: whether the weights that the server was started with may sample, as version 0. A trainer that
            publishes its own says no, and so finds out when the server was restarted.
        transport: replaces HTTP over the network.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout_s: float = 600.0,
        retries: int = 3,
        api_key: str | None = None,
        unpublished: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._model = model
        self._retries = retries
        self._publishes = not unpublished
        self._http = connection(url, timeout_s=timeout_s, api_key=api_key, transport=transport)
        self._control = VLLMControl(url, api_key=api_key, transport=transport)

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue `token_ids`. Raises `PolicyUnavailable`, also when the answer lacks what training needs."""
        return await self._sample(token_ids, sampling, labels="published" if self._publishes else "served")

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of each token after the first, at temperature 1: `len(token_ids) - 1` numbers."""
        return wire.prompt_logprobs(await self._generate(token_ids, wire.scoring_params()), token_ids)

    async def check(self, sampling: Sampling) -> None:
        """Ask for one token as a rollout would, so that a server started wrongly is found before the first rollout.

        A server that a trainer left paused when it died is set going. What weights it has matters only to who samples
        with them, not to who will publish others first. Raises `PolicyUnavailable`. The log-probabilities have to be
        those after temperature, which is not vLLM's default.
        """
        await self._control.end_pause()
        prompt = (*sampling.stop_token_ids, sampling.trigger_id or 0)
        hot = Sampling(1, wire.HOTTEST, seed=0, trigger_id=sampling.trigger_id)
        sampled = await self._sample(prompt, hot, labels="any" if self._publishes else "served")
        scores = await self.score((*prompt, *sampled.token_ids))
        if math.isclose(sampled.logprobs[0], scores[-1], abs_tol=1e-6):
            raise PolicyUnavailable(
                "the model server reports log-probabilities from before temperature: "
                "start it with --logprobs-mode processed_logprobs"
            )

    async def close(self) -> None:
        await self._http.aclose()
        await self._control.close()

    async def _sample(self, token_ids: Sequence[int], sampling: Sampling, *, labels: wire.Labels) -> Completion:
        answer = await self._generate(token_ids, wire.sampling_params(sampling))
        return wire.completion(answer.choices[0], sampling, labels=labels)

    async def _generate(self, token_ids: Sequence[int], params: dict[str, Any]) -> wire.Reply:
        return wire.reply(await self._post(wire.generate_body(self._model, token_ids, params)))

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        for attempt in itertools.count():
            try:
                return await self._http.post(wire.GENERATE, json=body)
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                if attempt == self._retries:
                    raise PolicyUnavailable(f"no connection to the model server at {self._http.base_url}") from error
                await asyncio.sleep(RETRY_PAUSE_S * 2**attempt)
            except httpx.HTTPError as error:
                raise PolicyUnavailable(f"no answer from the model server: {error!r}") from error
        raise AssertionError("unreachable")

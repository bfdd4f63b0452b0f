"""Sampling from a vLLM server, tokens in and tokens out (`POST /inference/v1/generate`).

Between the rollout and the model server. The server is another process in another environment, often another image:
only HTTP joins us. The flags it needs are those of `serving.py`; tests/integration/trainer/test_vllm_contract.py holds
this file against a real server.
"""

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from cellar_trainer.policy.protocol import LOGPROB_FLOOR, PolicyUnavailable
from cellar_trainer.types import Completion, FinishReason, Sampling

MISSING_LOGPROB = -9999.0
"""What vLLM sends for minus infinity, for NaN, and for a token it has no entry for."""
UNPUBLISHED = "default"
"""What vLLM calls the weights it was started with: our version 0."""
RETRY_PAUSE_S = 0.2
HOTTEST = 2.0
"""The highest temperature that vLLM takes."""


class VLLMPolicy:
    """A policy served by vLLM.

    Args:
        url: root of the server, without `/v1`.
        model: the name it serves the model under.
        timeout_s: longest wait for one completion.
        retries: how often a request whose connection broke is sent again. Sampling is seeded, so a repeat is the same.
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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._model = model
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(timeout_s, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            trust_env=False,
            transport=transport,
        )

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue `token_ids`. Raises `PolicyUnavailable`, also when the answer lacks what training needs."""
        reply = await self._generate(token_ids, _sampling_params(sampling))
        return _completion(reply.choices[0], sampling)

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of each token after the first, at temperature 1: `len(token_ids) - 1` numbers."""
        reply = await self._generate(token_ids, {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0})
        if reply.prompt_logprobs is None:
            raise PolicyUnavailable("the model server sent no log-probabilities for a prompt")
        return [
            position[str(token_id)].logprob
            for token_id, position in zip(token_ids[1:], reply.prompt_logprobs[1:], strict=True)
            if position is not None
        ]

    async def check(self, sampling: Sampling) -> None:
        """Ask for one token as a rollout would, so that a server started wrongly is found before the first rollout.

        Raises `PolicyUnavailable`. The log-probabilities have to be those after temperature, which is not vLLM's
        default.
        """
        prompt = (*sampling.stop_token_ids, sampling.trigger_id or 0)
        sampled = await self.generate(prompt, Sampling(1, HOTTEST, seed=0, trigger_id=sampling.trigger_id))
        scores = await self.score((*prompt, *sampled.token_ids))
        if math.isclose(sampled.logprobs[0], scores[-1], abs_tol=1e-6):
            raise PolicyUnavailable(
                "the model server reports log-probabilities from before temperature: "
                "start it with --logprobs-mode processed_logprobs"
            )

    async def close(self) -> None:
        await self._http.aclose()

    async def _generate(self, token_ids: Sequence[int], params: dict[str, Any]) -> "_Reply":
        body = {
            "request_id": uuid4().hex,
            "model": self._model,
            "token_ids": list(token_ids),
            "sampling_params": {"detokenize": False, **params},
        }
        response = await self._post("/inference/v1/generate", body)
        if response.status_code != httpx.codes.OK:
            raise PolicyUnavailable(f"the model server answered {response.status_code}: {_message(response)}")
        try:
            return _Reply.model_validate_json(response.content)
        except ValidationError as error:
            raise PolicyUnavailable(f"the model server's answer is not what we know: {error}") from error

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        for attempt in itertools.count():
            try:
                return await self._http.post(path, json=body)
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                if attempt == self._retries:
                    raise PolicyUnavailable(f"no connection to the model server at {self._http.base_url}") from error
                await asyncio.sleep(RETRY_PAUSE_S * 2**attempt)
            except httpx.HTTPError as error:
                raise PolicyUnavailable(f"no answer from the model server: {error!r}") from error
        raise AssertionError("unreachable")


class _TokenLogprob(BaseModel):
    token_id: int
    logprob: float


class _Position(_TokenLogprob):
    top_logprobs: list[_TokenLogprob] = []


class _Positions(BaseModel):
    content: list[_Position]


class _VersionSpan(BaseModel):
    version: str
    start: int
    end: int


class _Choice(BaseModel):
    token_ids: list[int]
    finish_reason: str
    logprobs: _Positions | None = None
    weight_versions: list[_VersionSpan] | None = None


class _PromptLogprob(BaseModel):
    logprob: float


class _Reply(BaseModel):
    choices: list[_Choice]
    prompt_logprobs: list[dict[str, _PromptLogprob] | None] | None = None


def _sampling_params(sampling: Sampling) -> dict[str, Any]:
    params = {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
        "stop_token_ids": list(sampling.stop_token_ids),
        "logprobs": 1,
    }
    if sampling.trigger_id is not None:
        # vLLM cuts the list [sampled, *logprob_token_ids] to `logprobs` entries, and refuses `logprobs` that is not the
        # length of `logprob_token_ids`: one id would be cut away, so the trigger is asked for twice.
        params |= {"logprobs": 2, "logprob_token_ids": [sampling.trigger_id] * 2}
    return params


def _completion(choice: _Choice, sampling: Sampling) -> Completion:
    if choice.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
        raise PolicyUnavailable(f"the model server ended a completion with {choice.finish_reason!r}")
    if choice.logprobs is None or len(choice.logprobs.content) != len(choice.token_ids):
        raise PolicyUnavailable("the model server sent tokens without a log-probability for each")
    finish = FinishReason(choice.finish_reason)
    return Completion(
        token_ids=tuple(choice.token_ids),
        logprobs=tuple(_sampled_logprob(p) for p in choice.logprobs.content),
        trigger_logprobs=tuple(_trigger_logprob(p, sampling.trigger_id) for p in choice.logprobs.content),
        policy_versions=_policy_versions(choice),
        finish_reason=finish,
        stop_token_id=choice.token_ids[-1] if finish is FinishReason.STOP else None,
    )


def _sampled_logprob(position: _Position) -> float:
    if position.logprob <= MISSING_LOGPROB:
        raise PolicyUnavailable(f"the model server has no log-probability for the token {position.token_id} it sampled")
    return position.logprob


def _trigger_logprob(position: _Position, trigger_id: int | None) -> float:
    if trigger_id is None:
        return LOGPROB_FLOOR
    for entry in position.top_logprobs:
        if entry.token_id == trigger_id:
            return max(entry.logprob, LOGPROB_FLOOR)
    raise PolicyUnavailable(f"the model server did not send the trigger's log-probability (token {trigger_id})")


def _policy_versions(choice: _Choice) -> tuple[int, ...]:
    if choice.weight_versions is None:
        raise PolicyUnavailable("the model server does not say which weights sampled its tokens; it needs vLLM >= 0.32")
    versions = [v for span in choice.weight_versions for v in [_version(span.version)] * (span.end - span.start)]
    if len(versions) != len(choice.token_ids):
        raise PolicyUnavailable(f"{len(choice.token_ids)} tokens, but weight versions for {len(versions)}")
    return tuple(versions)


def _version(label: str) -> int:
    if label == UNPUBLISHED:
        return 0
    if not label.isdecimal():
        raise PolicyUnavailable(f"the model server's weights are labelled {label!r}: somebody else publishes to it")
    return int(label)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300]

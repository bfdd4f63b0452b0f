"""What goes to vLLM and what comes back: `POST /inference/v1/generate`, tokens in and tokens out.

Pure functions; whatever an answer lacks that training needs is `PolicyUnavailable`.
"""

from collections.abc import Sequence
from typing import Any, Literal
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from cellar_trainer.policy.protocol import LOGPROB_FLOOR, PolicyUnavailable
from cellar_trainer.types import Completion, FinishReason, Sampling

GENERATE = "/inference/v1/generate"
MISSING_LOGPROB = -9999.0
"""What vLLM sends for minus infinity, for NaN, and for a token it has no entry for."""
UNPUBLISHED = "default"
"""What vLLM calls the weights it was started with: our version 0."""
INCOMPLETE = "incomplete"
"""What we call weights that are partly of one version and partly of another (deploy/vllm/cellar_lease.py)."""
HOTTEST = 2.0
"""The highest temperature that vLLM takes."""

WHOLE_DISTRIBUTION = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Nothing is cut off and nothing penalised: either would sample from another policy than the one whose ratio the
learner forms. Each is said, since a server may take what is left out from the model's generation_config.json."""


Labels = Literal["published", "served", "any"]
"""Whose tokens are wanted: those of weights that a trainer published; also of those that the server was started with,
as version 0; or of whatever weights, which are then not told apart and all version 0."""


class TokenLogprob(BaseModel):
    token_id: int
    logprob: float


class Position(TokenLogprob):
    top_logprobs: list[TokenLogprob] = []


class Positions(BaseModel):
    content: list[Position]


class VersionSpan(BaseModel):
    version: str
    start: int
    end: int


class Choice(BaseModel):
    token_ids: list[int]
    finish_reason: str
    logprobs: Positions | None = None
    weight_versions: list[VersionSpan] | None = None


class PromptLogprob(BaseModel):
    logprob: float


class Reply(BaseModel):
    choices: list[Choice]
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


def generate_body(model: str, token_ids: Sequence[int], params: dict[str, Any]) -> dict[str, Any]:
    return {
        "request_id": uuid4().hex,
        "model": model,
        "token_ids": list(token_ids),
        "sampling_params": {"detokenize": False, **params},
    }


def sampling_params(sampling: Sampling) -> dict[str, Any]:
    params = {
        **WHOLE_DISTRIBUTION,
        "n": 1,
        "temperature": sampling.temperature,
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


def scoring_params() -> dict[str, Any]:
    return {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}


def reply(response: httpx.Response) -> Reply:
    if response.status_code != httpx.codes.OK:
        raise PolicyUnavailable(f"the model server answered {response.status_code}: {error_message(response)}")
    try:
        return Reply.model_validate_json(response.content)
    except ValidationError as error:
        raise PolicyUnavailable(f"the model server's answer is not what we know: {error}") from error


def completion(choice: Choice, sampling: Sampling, *, labels: Labels) -> Completion:
    if choice.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
        raise PolicyUnavailable(f"the model server ended a completion with {choice.finish_reason!r}")
    if choice.logprobs is None or len(choice.logprobs.content) != len(choice.token_ids):
        raise PolicyUnavailable("the model server sent tokens without a log-probability for each")
    finish = FinishReason(choice.finish_reason)
    return Completion(
        token_ids=tuple(choice.token_ids),
        logprobs=tuple(_sampled_logprob(p) for p in choice.logprobs.content),
        trigger_logprobs=tuple(_trigger_logprob(p, sampling.trigger_id) for p in choice.logprobs.content),
        policy_versions=_policy_versions(choice, labels),
        finish_reason=finish,
        stop_token_id=choice.token_ids[-1] if finish is FinishReason.STOP else None,
    )


def prompt_logprobs(answer: Reply, token_ids: Sequence[int]) -> list[float]:
    if answer.prompt_logprobs is None:
        raise PolicyUnavailable("the model server sent no log-probabilities for a prompt")
    return [
        position[str(token_id)].logprob
        for token_id, position in zip(token_ids[1:], answer.prompt_logprobs[1:], strict=True)
        if position is not None
    ]


def error_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


def _sampled_logprob(position: Position) -> float:
    if position.logprob <= MISSING_LOGPROB:
        raise PolicyUnavailable(f"the model server has no log-probability for the token {position.token_id} it sampled")
    return position.logprob


def _trigger_logprob(position: Position, trigger_id: int | None) -> float:
    if trigger_id is None:
        return LOGPROB_FLOOR
    for entry in position.top_logprobs:
        if entry.token_id == trigger_id:
            return max(entry.logprob, LOGPROB_FLOOR)
    raise PolicyUnavailable(f"the model server did not send the trigger's log-probability (token {trigger_id})")


def _policy_versions(choice: Choice, labels: Labels) -> tuple[int, ...]:
    if choice.weight_versions is None:
        raise PolicyUnavailable("the model server does not say which weights sampled its tokens; it needs vLLM >= 0.32")
    spans = [(_version(span.version, labels), span.end - span.start) for span in choice.weight_versions]
    versions = [version for version, length in spans for _ in range(length)]
    if len(versions) != len(choice.token_ids):
        raise PolicyUnavailable(f"{len(choice.token_ids)} tokens, but weight versions for {len(versions)}")
    return tuple(versions)


def _version(label: str, labels: Labels) -> int:
    if labels == "any" or (label == UNPUBLISHED and labels == "served"):
        return 0
    if label == UNPUBLISHED:
        raise PolicyUnavailable("the model server was restarted and has its first weights again, not the policy's")
    if label == INCOMPLETE:
        raise PolicyUnavailable("an update of the model server's weights did not end: they have to be published again")
    if not label.isdecimal():
        raise PolicyUnavailable(f"the model server's weights are labelled {label!r}: somebody else publishes to it")
    return int(label)

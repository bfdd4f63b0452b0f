"""What is asked of vLLM, and every answer that is refused. The real server has its own test."""

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import httpx
import pytest

from cellar_trainer.policy.protocol import LOGPROB_FLOOR, PolicyUnavailable
from cellar_trainer.policy.vllm import VLLMPolicy, wire
from cellar_trainer.policy.vllm import policy as policy_module
from cellar_trainer.types import FinishReason, Sampling

SAMPLING = Sampling(max_tokens=9, temperature=0.7, seed=5, stop_token_ids=(7, 2), trigger_id=7)


def position(token_id: int, logprob: float, **top: float) -> dict[str, Any]:
    entries = {f"t{token_id}": logprob, **top}
    tops = [{"token_id": int(name[1:]), "logprob": value, "rank": 1} for name, value in entries.items()]
    return {"token_id": token_id, "logprob": logprob, "rank": 1, "top_logprobs": tops}


def choice(**changes: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "token_ids": [4, 7],
        "finish_reason": "stop",
        "stop_reason": 7,
        "logprobs": {"content": [position(4, -1.5, t7=-2.5), position(7, -0.5)]},
        "weight_versions": [{"version": "11", "start": 0, "end": 1}, {"version": "12", "start": 1, "end": 2}],
        **changes,
    }


def policy(answer: Callable[[httpx.Request], httpx.Response], retries: int = 3, **options: Any) -> VLLMPolicy:
    return VLLMPolicy("http://vllm", "m", retries=retries, transport=httpx.MockTransport(answer), **options)


def answering(**changes: Any) -> VLLMPolicy:
    return policy(lambda request: httpx.Response(200, json={"choices": [choice(**changes)]}))


async def test_a_completion_carries_its_log_probabilities_and_the_version_of_each_token() -> None:
    completion = await answering().generate([1, 2, 3], SAMPLING)
    assert completion.token_ids == (4, 7)
    assert completion.logprobs == (-1.5, -0.5)
    assert completion.trigger_logprobs == (-2.5, -0.5)
    assert completion.policy_versions == (11, 12)
    assert (completion.finish_reason, completion.stop_token_id) == (FinishReason.STOP, 7)


async def test_the_request_asks_for_the_trigger_twice_since_vllm_cuts_the_list_by_the_sampled_token() -> None:
    seen: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": [choice()]})

    await policy(answer).generate([1, 2, 3], SAMPLING)
    (body,) = seen
    assert (body["model"], body["token_ids"]) == ("m", [1, 2, 3])
    assert body["sampling_params"] == {
        **wire.WHOLE_DISTRIBUTION,
        "n": 1,
        "temperature": 0.7,
        "max_tokens": 9,
        "seed": 5,
        "stop_token_ids": [7, 2],
        "logprobs": 2,
        "logprob_token_ids": [7, 7],
        "detokenize": False,
    }


async def test_an_impossible_trigger_gets_the_floor_and_the_weights_of_the_start_are_version_0() -> None:
    completion = await answering(
        token_ids=[4],
        finish_reason="length",
        logprobs={"content": [position(4, -1.5, t7=-9999.0)]},
        weight_versions=[{"version": "default", "start": 0, "end": 1}],
    ).generate([1], SAMPLING)
    assert completion.trigger_logprobs == (LOGPROB_FLOOR,)
    assert completion.policy_versions == (0,)
    assert (completion.finish_reason, completion.stop_token_id) == (FinishReason.LENGTH, None)


async def test_nothing_is_cut_off_from_the_distribution_and_nothing_can_be() -> None:
    assert wire.sampling_params(SAMPLING).items() >= {"top_p": 1.0, "top_k": -1, "min_p": 0.0}.items()
    assert wire.sampling_params(SAMPLING)["repetition_penalty"] == 1.0
    assert not {"top_p", "top_k", "min_p"} & {field.name for field in fields(Sampling)}


async def test_a_trainer_takes_no_token_of_the_weights_that_a_server_was_started_with() -> None:
    first = choice(weight_versions=[{"version": "default", "start": 0, "end": 2}])
    with pytest.raises(PolicyUnavailable, match="was restarted"):
        await policy(lambda request: httpx.Response(200, json={"choices": [first]}), unpublished=False).generate(
            [1], SAMPLING
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprobs": None}, "without a log-probability for each"),
        ({"logprobs": {"content": [position(4, -1.0, t7=-1.0)]}}, "without a log-probability for each"),
        (
            {"logprobs": {"content": [position(4, -1.0), position(7, -0.5)]}},
            r"the trigger's log-probability \(token 7\)",
        ),
        ({"logprobs": {"content": [position(4, -9999.0, t7=-1.0), position(7, -0.5)]}}, "no log-probability for .* 4"),
        ({"weight_versions": None}, "which weights sampled"),
        ({"weight_versions": [{"version": "1", "start": 0, "end": 1}]}, "2 tokens, but weight versions for 1"),
        ({"weight_versions": [{"version": "mine", "start": 0, "end": 2}]}, "labelled 'mine'"),
        ({"weight_versions": [{"version": "incomplete", "start": 0, "end": 2}]}, "published again"),
        ({"finish_reason": "abort"}, "'abort'"),
        ({"token_ids": "x"}, "not what we know"),
    ],
)
async def test_an_answer_that_lacks_what_training_needs_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyUnavailable, match=message):
        await answering(**changes).generate([1], SAMPLING)


async def test_an_error_of_the_server_is_passed_on_in_its_words_and_not_tried_again() -> None:
    calls = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(400, json={"error": {"message": "too long"}})

    with pytest.raises(PolicyUnavailable, match="answered 400: too long"):
        await policy(answer).generate([1], SAMPLING)
    assert calls == 1


@pytest.mark.parametrize(("breaks", "retries", "answers"), [(2, 3, True), (2, 2, True), (2, 1, False)])
async def test_a_broken_connection_is_tried_again_within_its_bound(
    monkeypatch: pytest.MonkeyPatch, breaks: int, retries: int, answers: bool
) -> None:
    monkeypatch.setattr(policy_module, "RETRY_PAUSE_S", 0.0)
    calls = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls <= breaks:
            raise httpx.ReadError("reset")
        return httpx.Response(200, json={"choices": [choice()]})

    if answers:
        await policy(answer, retries).generate([1], SAMPLING)
    else:
        with pytest.raises(PolicyUnavailable, match="no connection"):
            await policy(answer, retries).generate([1], SAMPLING)
    assert calls == min(breaks, retries) + 1


async def test_a_timeout_is_not_tried_again() -> None:
    calls = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        raise httpx.ReadTimeout("slow")

    with pytest.raises(PolicyUnavailable, match="no answer"):
        await policy(answer).generate([1], SAMPLING)
    assert calls == 1


async def test_a_prompt_is_scored_by_its_own_tokens() -> None:
    logprobs = [None, {"5": {"logprob": -1.0}}, {"6": {"logprob": -2.0}, "9": {"logprob": -0.1}}]
    reply = {"choices": [choice()], "prompt_logprobs": logprobs}
    assert await policy(lambda request: httpx.Response(200, json=reply)).score([4, 5, 6]) == [-1.0, -2.0]
    with pytest.raises(PolicyUnavailable, match="for a prompt"):
        await answering().score([4, 5, 6])


@pytest.mark.parametrize("label", ["incomplete", "default", "somebody-else"])
async def test_weights_that_are_published_before_they_sample_may_have_any_label_until_then(label: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/is_paused":
            return httpx.Response(200, json={"is_paused": False})
        prompt = json.loads(request.content)["token_ids"]
        scores = [None, *({str(token): {"logprob": -1.0}} for token in prompt[1:])]
        return httpx.Response(200, json={"choices": [choice(weight_versions=spans)], "prompt_logprobs": scores})

    spans = [{"version": label, "start": 0, "end": 2}]
    publishing = policy(answer, unpublished=False)
    await publishing.check(SAMPLING)
    with pytest.raises(PolicyUnavailable):
        await publishing.generate([1], SAMPLING)
    if label != "default":
        with pytest.raises(PolicyUnavailable):
            await policy(answer).check(SAMPLING)
    spans[0]["end"] = 1
    with pytest.raises(PolicyUnavailable, match="weight versions for 1"):
        await publishing.check(SAMPLING)


async def test_a_server_that_reports_log_probabilities_from_before_temperature_is_refused() -> None:
    def raw(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/is_paused":
            return httpx.Response(200, json={"is_paused": False})
        params = json.loads(request.content)["sampling_params"]
        if "prompt_logprobs" not in params:
            one = choice(token_ids=[4], logprobs={"content": [position(4, -1.5, t7=-2.0)]})
            spans = [{"version": "1", "start": 0, "end": 1}]
            return httpx.Response(200, json={"choices": [{**one, "weight_versions": spans, "finish_reason": "length"}]})
        prompt = json.loads(request.content)["token_ids"]
        scores = [None, *({str(token): {"logprob": -1.5}} for token in prompt[1:])]
        return httpx.Response(200, json={"choices": [choice()], "prompt_logprobs": scores})

    with pytest.raises(PolicyUnavailable, match="--logprobs-mode processed_logprobs"):
        await policy(raw).check(SAMPLING)

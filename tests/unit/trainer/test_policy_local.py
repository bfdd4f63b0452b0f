"""The policy in this process: exact log-probabilities, the same samples for the same seed."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellar_client import AsyncCellar
from cellar_client.errors import CellarError
from cellar_trainer.config import ConfigError, parse_config
from cellar_trainer.learning.model import score
from cellar_trainer.policy.local import LocalPolicy
from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.types import Completion, FinishReason, Sampling
from cellar_trainer.wiring import open_rollouts
from tests.tiny_model import save_tiny_model, tiny_model

MODEL = tiny_model(context=64)
PROMPT = (5, 9, 2, 40)
TRIGGER = 31


def generate(sampling: Sampling, policy: LocalPolicy | None = None) -> Completion:
    return asyncio.run((policy or LocalPolicy(MODEL)).generate(PROMPT, sampling))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_the_same_seed_gives_the_same_completion_and_its_prefixes(seed: int, length: int) -> None:
    whole = generate(Sampling(12, seed=seed, trigger_id=TRIGGER))
    part = generate(Sampling(length, seed=seed, trigger_id=TRIGGER))
    assert part.token_ids == whole.token_ids[:length]
    assert part.logprobs == whole.logprobs[:length]


def test_other_seeds_give_other_completions() -> None:
    assert len({generate(Sampling(12, seed=seed)).token_ids for seed in range(5)}) == 5


def test_log_probabilities_are_those_of_the_model() -> None:
    completion = generate(Sampling(20, seed=1, trigger_id=TRIGGER))
    expected = score(MODEL, (*PROMPT, *completion.token_ids))[len(PROMPT) - 1 :]
    assert completion.logprobs == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        logits = MODEL(torch.tensor([PROMPT])).logits[0, -1]
    assert completion.trigger_logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[TRIGGER]), abs=1e-5)


def test_log_probabilities_are_those_after_temperature() -> None:
    completion = generate(Sampling(1, temperature=2.0, seed=1))
    with torch.no_grad():
        logits = MODEL(torch.tensor([PROMPT])).logits[0, -1]
    assert completion.logprobs[0] == pytest.approx(
        float((logits / 2).log_softmax(-1)[completion.token_ids[0]]), abs=1e-5
    )


def test_sampling_ends_with_a_stop_token_that_stays() -> None:
    free = generate(Sampling(12, seed=3))
    stop = free.token_ids[4]
    first = free.token_ids.index(stop)
    stopped = generate(Sampling(12, seed=3, stop_token_ids=(stop,)))
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert (stopped.finish_reason, stopped.stop_token_id) == (FinishReason.STOP, stop)
    assert (free.finish_reason, free.stop_token_id) == (FinishReason.LENGTH, None)


def test_it_samples_with_what_was_loaded_not_with_what_the_model_became() -> None:
    model = tiny_model(seed=1, context=64)
    policy = LocalPolicy(model, version=4)
    before = generate(Sampling(8, seed=0), policy)
    with torch.no_grad():
        for weight in model.parameters():
            weight.neg_()
    assert generate(Sampling(8, seed=0), policy) == before
    policy.load(model.named_parameters(), 5)
    after = generate(Sampling(8, seed=0), policy)
    assert after.logprobs != before.logprobs
    assert (before.policy_versions[0], after.policy_versions[0]) == (4, 5)


def test_weights_that_come_while_it_samples_hold_from_the_next_token_on() -> None:
    model, other = tiny_model(seed=1, context=64), tiny_model(seed=2, context=64)
    passes = iter(range(1000))

    def load_in_the_fourth(module: Any, arguments: Any, outputs: Any) -> None:
        if next(passes) == 3:
            policy.load(other.named_parameters(), 5)

    model.model.norm.register_forward_hook(load_in_the_fourth)
    policy = LocalPolicy(model, version=4)
    sampled = asyncio.run(policy.generate(PROMPT, Sampling(12, seed=0)))

    assert sampled.policy_versions == (4,) * 4 + (5,) * 8
    old, new = (score(each, (*PROMPT, *sampled.token_ids))[len(PROMPT) - 1 :] for each in (model, other))
    assert sampled.logprobs == pytest.approx([*old[:4], *new[4:]], abs=1e-5)


def test_weights_of_another_model_are_refused_and_change_nothing() -> None:
    policy = LocalPolicy(MODEL)
    with pytest.raises(ValueError, match=r"not this model's weights: model\.norm\.weight"):
        policy.load([(n, w + 1) for n, w in MODEL.named_parameters() if n != "model.norm.weight"], 1)
    assert generate(Sampling(4, seed=0), policy) == generate(Sampling(4, seed=0))


def test_more_tokens_than_the_model_can_see_are_refused() -> None:
    with pytest.raises(PolicyUnavailable, match="context of 64"):
        generate(Sampling(61, seed=0))


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [(65, ConfigError, "max_context_tokens: 65 exceed the model's context of 64"), (64, CellarError, "no executor")],
)
async def test_rollouts_that_the_model_has_no_room_for_are_a_mistake_of_the_configuration(
    tokens: int, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(_: AsyncCellar) -> None:
        raise CellarError("no executor")

    monkeypatch.setattr(AsyncCellar, "info", gone)
    tables = {"output": "o", "model": {"path": save_tiny_model(tmp_path, context=64)}, "tasks": {"path": "t"}}
    config = parse_config({**tables, "policy": {"kind": "local"}, "rollout": {"max_context_tokens": tokens}})
    with pytest.raises(error, match=message):
        async with open_rollouts(config):
            pass

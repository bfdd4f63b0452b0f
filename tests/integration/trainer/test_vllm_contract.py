"""What the trainer takes for granted about vLLM, asked of a real server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import torch

from cellar_trainer.learning.model import control_tokens, load_model
from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.policy.vllm import VLLMControl, VLLMPolicy
from cellar_trainer.serving import VLLMServer
from cellar_trainer.types import FinishReason, Sampling
from cellar_trainer.weights import FileTransfer, ServedPublisher
from tests.tiny_model import TRIGGER, tiny_model, tiny_tokenizer
from tests.vllm_server import TinySource

pytestmark = pytest.mark.vllm

TOKENIZER = tiny_tokenizer()
TOKENS = control_tokens(TOKENIZER, TRIGGER)
TRIGGER_ID, EOS_ID = TOKENS.trigger_id, TOKENS.eos_id
PROMPT = tuple(TOKENIZER.encode("What is 6 times 7? "))
PROBE = tuple(range(64))


def sampling(max_tokens: int = 40, *, seed: int = 1, temperature: float = 1.0, stops: tuple[int, ...] = ()) -> Sampling:
    return Sampling(max_tokens, temperature, seed, stops, TRIGGER_ID)


@pytest.fixture
async def policy(vllm_server: VLLMServer) -> AsyncIterator[VLLMPolicy]:
    served = VLLMPolicy(vllm_server.url, vllm_server.model)
    yield served
    await served.close()


@pytest.fixture
async def publisher(vllm_server: VLLMServer, policy: VLLMPolicy) -> AsyncIterator[ServedPublisher]:
    """The server has the weights of `TinySource()` again, as version 0."""
    opened = ServedPublisher(policy, VLLMControl(vllm_server.url), FileTransfer(), probe_ids=PROBE)
    await opened.publish(TinySource(), 0)
    yield opened
    await opened.close()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
async def test_log_probabilities_of_sampled_tokens_and_of_the_trigger_are_the_models_after_temperature(
    policy: VLLMPolicy, publisher: ServedPublisher, temperature: float
) -> None:
    completion = await policy.generate(PROMPT, sampling(temperature=temperature))
    ids = torch.tensor([[*PROMPT, *completion.token_ids]])
    with torch.no_grad():
        logprobs = (tiny_model(tied=True)(ids).logits[0, len(PROMPT) - 1 : -1] / temperature).log_softmax(-1)
    expected = logprobs.gather(-1, ids[0, len(PROMPT) :, None])[:, 0].tolist()
    assert completion.logprobs == pytest.approx(expected, abs=1e-3)
    assert completion.trigger_logprobs == pytest.approx(logprobs[:, TRIGGER_ID].tolist(), abs=1e-3)


async def test_the_same_seed_gives_the_same_tokens_and_siblings_differ(policy: VLLMPolicy) -> None:
    first, again, *siblings = await asyncio.gather(
        *(policy.generate(PROMPT, sampling(seed=seed)) for seed in (1, 1, 2, 3, 4))
    )
    assert again.token_ids == first.token_ids
    assert len({sibling.token_ids for sibling in (first, *siblings)}) == 4


async def test_sampling_ends_with_a_stop_token_that_stays_with_its_log_probability(policy: VLLMPolicy) -> None:
    free = await policy.generate(PROMPT, sampling())
    assert (free.finish_reason, len(free.token_ids)) == (FinishReason.LENGTH, 40)
    stop = free.token_ids[20]
    stopped = await policy.generate(PROMPT, sampling(stops=(EOS_ID, stop)))
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert (stopped.finish_reason, stopped.stop_token_id) == (FinishReason.STOP, stop)
    assert len(stopped.logprobs) == len(stopped.trigger_logprobs) == len(stopped.token_ids)


async def test_where_the_trigger_is_sampled_its_two_log_probabilities_are_one(
    policy: VLLMPolicy, publisher: ServedPublisher
) -> None:
    for seed in range(200):
        completion = await policy.generate(PROMPT, sampling(64, seed=seed, temperature=2.0, stops=(TRIGGER_ID,)))
        if completion.stop_token_id == TRIGGER_ID:
            assert completion.trigger_logprobs[-1] == completion.logprobs[-1]
            return
    pytest.fail("the trigger was never sampled")


async def test_prompts_of_many_lengths_at_once_are_all_answered(policy: VLLMPolicy) -> None:
    prompts = [(PROMPT * 60)[: 13 * i + 2] for i in range(70)]
    completions = await asyncio.gather(*(policy.generate(p, sampling(60, seed=i)) for i, p in enumerate(prompts)))
    assert all(c.finish_reason is FinishReason.STOP or len(c.token_ids) == 60 for c in completions)


async def test_what_the_server_refuses_is_said_in_its_words(vllm_server: VLLMServer, policy: VLLMPolicy) -> None:
    with pytest.raises(PolicyUnavailable, match="400.*maximum model length"):
        await policy.generate((5,) * 1024, sampling())
    another = VLLMPolicy(vllm_server.url, "another")
    with pytest.raises(PolicyUnavailable, match="404.*does not exist"):
        await another.generate(PROMPT, sampling())
    await another.close()


async def test_the_server_passes_the_check_of_its_flags(policy: VLLMPolicy) -> None:
    await policy.check(sampling(stops=(TRIGGER_ID, EOS_ID)))


def test_the_served_model_is_the_folder_it_was_started_with(vllm_server: VLLMServer) -> None:
    loaded = load_model(vllm_server.model_dir, dtype="float32", device="cpu")
    assert torch.equal(loaded.state_dict()["lm_head.weight"], tiny_model(tied=True).state_dict()["lm_head.weight"])

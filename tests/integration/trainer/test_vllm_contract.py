"""What the trainer takes for granted about vLLM, asked of a real server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import torch

from cellar_trainer.model import control_tokens, load_model, score
from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.policy.vllm import VLLMPolicy
from cellar_trainer.serving import VLLMServer
from cellar_trainer.types import FinishReason, Sampling
from cellar_trainer.weights import FilePublisher, PublishFailed
from tests.tiny_model import TRIGGER, tiny_model, tiny_tokenizer

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
async def publisher(vllm_server: VLLMServer, policy: VLLMPolicy) -> AsyncIterator[FilePublisher]:
    """The server has the weights of `tiny_model(tied=True)` again, as version 0."""
    opened = FilePublisher(vllm_server.url, policy, probe_ids=PROBE, max_difference=1e-3)
    await opened.publish(tiny_model(tied=True), 0)
    yield opened
    await opened.close()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
async def test_log_probabilities_of_sampled_tokens_and_of_the_trigger_are_the_models_after_temperature(
    policy: VLLMPolicy, publisher: FilePublisher, temperature: float
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
    policy: VLLMPolicy, publisher: FilePublisher
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


async def test_a_published_model_answers_with_its_log_probabilities_as_its_version(
    policy: VLLMPolicy, publisher: FilePublisher
) -> None:
    for version, seed in ((1, 11), (2, 12), (3, 13)):
        model = tiny_model(seed=seed, tied=True)
        metrics = await publisher.publish(model, version)
        assert metrics["publish_difference"] < 1e-3
        completion = await policy.generate(PROMPT, sampling())
        assert set(completion.policy_versions) == {version}
        expected = score(model, (*PROMPT, *completion.token_ids))[len(PROMPT) - 1 :]
        assert completion.logprobs == pytest.approx(expected, abs=1e-3)


async def test_a_prompt_that_was_cached_is_read_again_after_new_weights(
    policy: VLLMPolicy, publisher: FilePublisher
) -> None:
    long = (PROMPT * 40)[:700]
    await policy.generate(long, sampling(1))
    model = tiny_model(seed=21, tied=True)
    await publisher.publish(model, 4)
    completion = await policy.generate(long, sampling(8))
    expected = score(model, (*long, *completion.token_ids))[len(long) - 1 :]
    assert completion.logprobs == pytest.approx(expected, abs=1e-3)


async def test_a_second_trainer_may_publish_after_the_first(vllm_server: VLLMServer, policy: VLLMPolicy) -> None:
    for version in (5, 6):
        opened = FilePublisher(vllm_server.url, policy, probe_ids=PROBE, max_difference=1e-3)
        await opened.publish(tiny_model(seed=version, tied=True), version)
        await opened.close()


async def test_a_token_in_flight_is_of_the_weights_that_it_names_and_of_no_older_cache(
    policy: VLLMPolicy, publisher: FilePublisher
) -> None:
    models = {version: tiny_model(seed=30 + version, tied=True) for version in (7, 8)}
    await publisher.publish(models[7], 7)
    running = [asyncio.create_task(policy.generate(PROMPT, sampling(900, seed=s))) for s in range(8)]
    await asyncio.sleep(0.3)
    await publisher.publish(models[8], 8)
    for completion in await asyncio.gather(*running):
        assert list(completion.policy_versions) == sorted(completion.policy_versions)
        ids = (*PROMPT, *completion.token_ids)
        scores = {version: score(model, ids)[len(PROMPT) - 1 :] for version, model in models.items()}
        expected = [scores[version][place] for place, version in enumerate(completion.policy_versions)]
        assert completion.logprobs == pytest.approx(expected, abs=1e-3)


async def test_a_model_that_is_not_the_servers_is_found_out_and_the_server_lives(
    vllm_server: VLLMServer, policy: VLLMPolicy, publisher: FilePublisher
) -> None:
    class Forgetful(FilePublisher):
        async def _transfer(self, path: str, version: int) -> None:
            pass

    forgetful = Forgetful(vllm_server.url, policy, probe_ids=PROBE, max_difference=1e-3)
    with pytest.raises(PublishFailed, match="differ by"):
        await forgetful.publish(tiny_model(seed=77, tied=True), 9)
    await forgetful.close()
    await policy.generate(PROMPT, sampling(2))


def test_the_served_model_is_the_folder_it_was_started_with(vllm_server: VLLMServer) -> None:
    loaded = load_model(vllm_server.model_dir, dtype="float32", device="cpu")
    assert torch.equal(loaded.state_dict()["lm_head.weight"], tiny_model(tied=True).state_dict()["lm_head.weight"])

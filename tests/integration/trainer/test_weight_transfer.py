"""New weights for a real vLLM: exact whichever way they travel, and nothing that goes wrong on the way is left behind.

The first server's model is tied, the second's is not; the second one asks for a key, has a short lease on pauses, and
its last test kills it.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
from torch import Tensor

from cellar_trainer.learning.model import control_tokens
from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.policy.vllm import ControlFailed, VLLMControl, VLLMPolicy
from cellar_trainer.serving import VLLMServer
from cellar_trainer.types import Sampling
from cellar_trainer.weights import Broadcast, FileTransfer, GlooGroup, PublishFailed, ServedPublisher, Transfer
from cellar_trainer.weights.protocol import Send, Weights
from tests.tiny_model import TRIGGER, tiny_tokenizer
from tests.vllm_server import TinySource, tiny_vllm

pytestmark = pytest.mark.vllm

KEY = "secret"
LEASE_S = 3.0
PROBE = range(64)
TOKENIZER = tiny_tokenizer()
TOKENS = control_tokens(TOKENIZER, TRIGGER)
PROMPT = tuple(TOKENIZER.encode("What is 6 times 7? "))
EXACT = 1e-4
"""Largest difference of two log-probabilities; float32 sums in another order differ by about 1e-5."""

PAUSE_AND_WAIT = """
import asyncio, sys
from cellar_trainer.policy.vllm import VLLMControl

async def main():
    control = VLLMControl(sys.argv[1], api_key=sys.argv[2])
    await control.pause()
    await control.start_update()
    print("paused", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server as a trainer has it."""

    server: VLLMServer
    tied: bool
    policy: VLLMPolicy
    control: VLLMControl

    def publisher(self, transfer: Transfer, **options: float) -> ServedPublisher:
        return ServedPublisher(self.policy, self.control, transfer, probe_ids=PROBE, max_difference=EXACT, **options)

    def source(self, seed: int) -> TinySource:
        return TinySource(seed, tied=self.tied)

    async def sample(self, *, max_tokens: int = 40, prompt: tuple[int, ...] = PROMPT, seed: int = 1) -> "Sampled":
        sampling = Sampling(max_tokens, 1.0, seed, (), TOKENS.trigger_id)
        completion = await self.policy.generate(prompt, sampling)
        return Sampled(prompt, completion.token_ids, completion.logprobs, completion.policy_versions)


@dataclass(frozen=True, slots=True)
class Sampled:
    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]

    def scored_by(self, source: TinySource) -> list[float]:
        return source.score((*self.prompt, *self.token_ids))[len(self.prompt) - 1 :]


def worker_of(server: VLLMServer) -> int:
    """The process that has the model: it calls itself so."""
    group = subprocess.run(
        ["ps", "-o", "pid=,args=", "-s", str(server.pid)], capture_output=True, text=True, check=True
    )
    return next(int(line.split()[0]) for line in group.stdout.splitlines() if "VLLM::Worker" in line)


def by_gloo() -> Broadcast:
    return Broadcast(partial(GlooGroup, host="127.0.0.1", timeout_s=20.0))


TRANSFERS = pytest.mark.parametrize("transfer", [FileTransfer, by_gloo])


@pytest.fixture(scope="module")
def untied_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    folder = tmp_path_factory.mktemp("untied")
    with tiny_vllm(folder, tied=False, pause_lease_s=LEASE_S, restarts=1, extra=("--api-key", KEY)) as server:
        yield server


@pytest.fixture
async def tied(vllm_server: VLLMServer) -> AsyncIterator[Served]:
    policy = VLLMPolicy(vllm_server.url, vllm_server.model, unpublished=False)
    control = VLLMControl(vllm_server.url)
    yield Served(vllm_server, True, policy, control)
    await policy.close()
    await control.close()


@pytest.fixture
async def untied(untied_server: VLLMServer) -> AsyncIterator[Served]:
    policy = VLLMPolicy(untied_server.url, untied_server.model, api_key=KEY, unpublished=False)
    control = VLLMControl(untied_server.url, api_key=KEY)
    yield Served(untied_server, False, policy, control)
    await policy.close()
    await control.close()


async def assert_exact(served: Served, transfer: Transfer) -> None:
    """Two trainers, one after the other, as one takes over from another; three updates."""
    for seeds in ((11, 12), (13,)):
        publisher = served.publisher(transfer)
        for seed in seeds:
            source = served.source(seed)
            metrics = await publisher.publish(source, seed)
            assert metrics["publish_difference"] < EXACT
            sampled = await served.sample()
            assert set(sampled.versions) == {seed}
            assert sampled.logprobs == pytest.approx(sampled.scored_by(source), abs=EXACT)
        transfer.drop()


@TRANSFERS
async def test_a_tied_model_is_exactly_the_trainers_after_each_update(
    tied: Served, transfer: Callable[[], Transfer]
) -> None:
    await assert_exact(tied, transfer())


@TRANSFERS
async def test_an_untied_model_is_exactly_the_trainers_after_each_update(
    untied: Served, transfer: Callable[[], Transfer]
) -> None:
    await assert_exact(untied, transfer())


async def test_a_prompt_that_was_cached_is_read_again_after_new_weights(tied: Served) -> None:
    publisher = tied.publisher(FileTransfer())
    await publisher.publish(tied.source(20), 3)
    long = (PROMPT * 40)[:700]
    await tied.sample(prompt=long, max_tokens=1)
    source = tied.source(21)
    await publisher.publish(source, 4)
    sampled = await tied.sample(prompt=long, max_tokens=8)
    assert sampled.logprobs == pytest.approx(sampled.scored_by(source), abs=EXACT)


async def test_a_token_in_flight_is_of_the_weights_that_it_names_and_of_no_older_cache(tied: Served) -> None:
    sources = {version: tied.source(30 + version) for version in (7, 8)}
    publisher = tied.publisher(FileTransfer())
    await publisher.publish(sources[7], 7)
    running = [asyncio.create_task(tied.sample(max_tokens=900, seed=seed)) for seed in range(8)]
    await asyncio.sleep(0.3)
    await publisher.publish(sources[8], 8)
    for sampled in await asyncio.gather(*running):
        assert list(sampled.versions) == sorted(sampled.versions)
        scores = {version: sampled.scored_by(source) for version, source in sources.items()}
        expected = [scores[version][place] for place, version in enumerate(sampled.versions)]
        assert sampled.logprobs == pytest.approx(expected, abs=1e-3)


async def test_a_model_that_is_not_the_servers_is_found_out_and_the_server_lives(tied: Served) -> None:
    others = Breaking(FileTransfer(), times=99, spoil=lambda weights: list(tied.source(76).weights()))
    with pytest.raises(PublishFailed, match="differ by"):
        await tied.publisher(others).publish(tied.source(77), 9)
    with pytest.raises(PolicyUnavailable, match="published again"):
        await tied.sample(max_tokens=2)
    await tied.publisher(FileTransfer()).publish(tied.source(77), 9)
    assert set((await tied.sample(max_tokens=2)).versions) == {9}


@dataclass(slots=True)
class Breaking:
    """A transfer whose first `times` updates carry spoilt weights, or are interrupted while the server waits."""

    inner: Transfer
    times: int
    spoil: Callable[[Weights], Weights] = list
    interrupt: Callable[[], object] = bool

    async def open(self, control: VLLMControl) -> None:
        await self.inner.open(control)

    def prepare(self, weight: Tensor) -> Tensor:
        return self.inner.prepare(weight)

    @asynccontextmanager
    async def carry(self, control: VLLMControl, weights: Weights) -> AsyncIterator[Send]:
        self.times -= 1
        breaks = self.times >= 0
        async with self.inner.carry(control, self.spoil(weights) if breaks else weights) as send:

            async def interrupted() -> None:
                if breaks:
                    self.interrupt()
                await send()

            yield interrupted

    def drop(self) -> None:
        self.inner.drop()


def misfit(weights: Weights) -> Weights:
    return [(name, weight[:-1] if "down_proj" in name else weight) for name, weight in weights]


@TRANSFERS
async def test_an_update_that_breaks_off_leaves_a_server_that_takes_the_next_one(
    tied: Served, transfer: Callable[[], Transfer]
) -> None:
    source = tied.source(41)
    breaking = Breaking(transfer(), times=1, spoil=misfit)
    await tied.publisher(breaking).publish(source, 41)
    assert breaking.times == -1
    sampled = await tied.sample()
    assert sampled.logprobs == pytest.approx(sampled.scored_by(source), abs=EXACT)


async def test_a_trainer_that_is_killed_between_start_and_finish_leaves_no_server_paused(untied: Served) -> None:
    source = untied.source(51)
    publisher = untied.publisher(FileTransfer())
    await publisher.publish(source, 51)
    command = [sys.executable, "-c", PAUSE_AND_WAIT, untied.server.url, KEY]
    trainer = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert trainer.stdout is not None
    assert await trainer.stdout.readline() == b"paused\n"
    trainer.kill()
    await trainer.wait()
    assert await untied.control.is_paused()
    # The next request waits for the lease, and is answered; by which weights cannot be said, so no token is taken.
    with pytest.raises(PolicyUnavailable, match="published again"):
        await untied.sample()
    assert not await untied.control.is_paused()
    await publisher.publish(source, 52)
    sampled = await untied.sample()
    assert sampled.logprobs == pytest.approx(sampled.scored_by(source), abs=EXACT)


async def test_who_has_no_key_does_not_steer(untied: Served) -> None:
    stranger = VLLMControl(untied.server.url)
    for steer in (stranger.pause, stranger.start_update, stranger.abandon_update, stranger.is_paused):
        with pytest.raises(ControlFailed, match="401: this route wants the API key"):
            await steer()
    await stranger.close()
    assert not await untied.control.is_paused()


async def test_a_server_that_is_killed_half_way_gets_everything_again_when_it_is_back(untied: Served) -> None:
    """Last, as it takes as long as a start: the worker dies, as of lack of memory; vLLM ends and is started again."""

    def kill() -> None:
        os.kill(worker_of(untied.server), signal.SIGKILL)

    source = untied.source(61)
    killing = Breaking(FileTransfer(), times=1, interrupt=kill)
    await untied.publisher(killing, timeout_s=60.0).publish(source, 61)
    sampled = await untied.sample()
    assert set(sampled.versions) == {61}
    assert sampled.logprobs == pytest.approx(sampled.scored_by(source), abs=EXACT)

"""What a publish does when something is wrong. That it is right is tested against a real server."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from torch import Tensor

from cellar_trainer.policy.vllm import VLLMControl, VLLMPolicy
from cellar_trainer.weights import FileTransfer, PublishFailed, ServedPublisher, Transfer, served
from cellar_trainer.weights.protocol import Send
from tests.scripted_vllm import UPDATE_ROUTES, ScriptedVLLM
from tests.vllm_server import TinySource

PROBE = [3, 1, 4, 1, 5]
TIDYING = ["abandon_weight_update", "/resume"]


@asynccontextmanager
async def publishing(
    server: ScriptedVLLM, folder: Path, transfer: Transfer | None = None, **options: Any
) -> AsyncIterator[ServedPublisher]:
    policy = VLLMPolicy("http://vllm", "m", transport=server.transport)
    control = VLLMControl("http://vllm", transport=server.transport)
    publisher = ServedPublisher(policy, control, transfer or FileTransfer(folder), probe_ids=PROBE, **options)
    yield publisher
    await publisher.close()
    await policy.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "POLL_S", 0.01)


def refusal() -> httpx.Response:
    return httpx.Response(500, text="no")


async def test_a_publish_is_the_whole_sequence_in_order_and_leaves_no_file(tmp_path: Path) -> None:
    server = ScriptedVLLM()
    async with publishing(server, tmp_path) as publisher:
        metrics = await publisher.publish(TinySource(), 7)
        first = server.routes
        await publisher.publish(TinySource(), 8)
    assert first == ["served_dtype", "/init_weight_transfer_engine", *UPDATE_ROUTES]
    assert server.routes == [*first, *UPDATE_ROUTES]
    assert (server.label, server.paused) == ("8", False)
    assert server.names == set(dict(TinySource().weights()))
    assert metrics["publish_difference"] < 1e-5
    assert os.listdir(tmp_path) == []


async def test_a_tied_weight_is_sent_once(tmp_path: Path) -> None:
    server = ScriptedVLLM()
    async with publishing(server, tmp_path) as publisher:
        await publisher.publish(TinySource(tied=True), 1)
    assert "lm_head.weight" not in server.names
    assert "model.embed_tokens.weight" in server.names


@pytest.mark.parametrize("failing", UPDATE_ROUTES)
async def test_a_refusal_anywhere_is_put_right_and_everything_is_given_again(tmp_path: Path, failing: str) -> None:
    server = ScriptedVLLM(None, **{failing[1:]: [refusal()]})
    async with publishing(server, tmp_path) as publisher:
        await publisher.publish(TinySource(), 1)
    broken = UPDATE_ROUTES[: UPDATE_ROUTES.index(failing) + 1]
    again = ["/init_weight_transfer_engine", *UPDATE_ROUTES]
    begun = ["/start_weight_update", "/update_weights", "/finish_weight_update"]
    marked = ["/update_weight_version"] if failing in begun else []
    found_unfinished = ["/update_weight_version"] if failing in begun[1:] else []
    steering = [route for route in server.routes if route != "served_dtype"][1:]
    assert steering == [*broken, *marked, TIDYING[0], *found_unfinished, TIDYING[1], *again]
    assert (server.label, server.paused) == ("1", False)
    assert os.listdir(tmp_path) == []


async def test_a_server_whose_update_cannot_be_abandoned_is_not_set_going(tmp_path: Path) -> None:
    """Its layers have no weights: the next token would end it. Its own lease ends the pause."""
    server = ScriptedVLLM(update_weights=[refusal()], collective_rpc=[refusal()])
    async with publishing(server, tmp_path, max_difference=1e-3, recovery_s=0.0) as publisher:
        with pytest.raises(PublishFailed):
            await publisher.publish(TinySource(), 1)
    assert (server.label, server.paused) == ("incomplete", True)


async def test_nan_is_no_difference_that_is_allowed(tmp_path: Path) -> None:
    class Nan(TinySource):
        def score(self, token_ids: Sequence[int]) -> list[float]:
            first, *rest = super().score(token_ids)
            return [first, float("nan"), *rest[1:]]

    async with publishing(ScriptedVLLM(), tmp_path) as publisher:
        with pytest.raises(PublishFailed, match="differ"):
            await publisher.publish(Nan(), 1)


async def test_a_server_that_goes_on_refusing_is_left_unpaused_with_unusable_weights(tmp_path: Path) -> None:
    server = ScriptedVLLM(update_weights=[refusal()] * 3)
    async with publishing(server, tmp_path) as publisher:
        with pytest.raises(PublishFailed, match="failed 3 times.*Restart it.*/update_weights.*500: no"):
            await publisher.publish(TinySource(), 1)
    assert (server.label, server.paused, server.updating) == ("incomplete", False, False)


async def test_a_server_that_was_away_gets_everything_again(tmp_path: Path) -> None:
    gone = httpx.ConnectError("refused")
    server = ScriptedVLLM(pause=[httpx.ReadError("reset")], resume=[gone], health=[gone] * 5)
    async with publishing(server, tmp_path) as publisher:
        await publisher.publish(TinySource(), 1)
    assert server.count()["/pause"] == 2
    assert (server.label, server.paused) == ("1", False)


async def test_a_server_that_stays_away_is_told_of_with_what_to_do(tmp_path: Path) -> None:
    server = ScriptedVLLM(pause=[httpx.ConnectError("refused")], health=[httpx.ConnectError("refused")] * 1000)
    async with publishing(server, tmp_path, recovery_s=0.1) as publisher:
        with pytest.raises(PublishFailed, match="did not work in 0 s. Restart it, then resume this run. /pause"):
            await publisher.publish(TinySource(), 1)


async def test_a_server_that_is_well_and_breaks_every_update_is_not_tried_for_ever(tmp_path: Path) -> None:
    server = ScriptedVLLM(pause=[httpx.ReadError("reset")] * 200)
    async with publishing(server, tmp_path, recovery_s=0.2) as publisher:
        with pytest.raises(PublishFailed, match="did not work in 0 s. Restart it"):
            await publisher.publish(TinySource(), 1)
    assert server.count()["/pause"] < 200


class Counted(FileTransfer):
    """Notes what was prepared."""

    def __init__(self, directory: Path, seen: list[str]) -> None:
        super().__init__(directory)
        self._seen = seen

    def prepare(self, weight: Tensor) -> Tensor:
        self._seen.append("prepared")
        return super().prepare(weight)


async def test_each_weight_is_prepared_before_the_next_one_is_made(tmp_path: Path) -> None:
    seen: list[str] = []
    source = TinySource()
    made = source.weights

    def weights() -> Iterator[tuple[str, Tensor]]:
        for weight in made():
            seen.append("made")
            yield weight

    source.weights = weights  # type: ignore[method-assign]
    async with publishing(ScriptedVLLM(), tmp_path, Counted(tmp_path, seen)) as publisher:
        await publisher.publish(source, 1)
    assert seen == ["made", "prepared"] * (len(seen) // 2)
    assert seen


async def test_a_server_without_our_extension_is_told_of_at_once(tmp_path: Path) -> None:
    said = httpx.Response(500, json={"error": {"message": "'CPUWorker' object has no attribute 'served_dtype'"}})
    async with publishing(ScriptedVLLM(collective_rpc=[said]), tmp_path) as publisher:
        with pytest.raises(PublishFailed, match="lacks our worker extension"):
            await publisher.publish(TinySource(), 1)


async def test_a_server_that_kept_other_weights_is_found_out_and_cannot_be_sampled(tmp_path: Path) -> None:
    server = ScriptedVLLM(TinySource(seed=1))
    async with publishing(server, tmp_path) as publisher:
        with pytest.raises(PublishFailed, match="log-probabilities differ by"):
            await publisher.publish(TinySource(seed=0), 1)
    assert (server.label, server.paused) == ("incomplete", False)


@pytest.mark.parametrize(("max_difference", "passes"), [(1e-9, False), (None, True), (10.0, True)])
async def test_how_far_two_sides_may_differ_is_an_option(
    tmp_path: Path, max_difference: float | None, passes: bool
) -> None:
    server = ScriptedVLLM(TinySource(seed=0))
    trainer = TinySource(seed=0)
    trainer.score = lambda token_ids: [score + 1e-4 for score in server.source.score(token_ids)]  # type: ignore[method-assign]
    async with publishing(server, tmp_path, max_difference=max_difference) as publisher:
        if passes:
            assert (await publisher.publish(trainer, 1))["publish_difference"] == pytest.approx(1e-4, rel=0.01)
        else:
            with pytest.raises(PublishFailed, match="differ by"):
                await publisher.publish(trainer, 1)


class HangingTransfer(FileTransfer):
    """Never sends."""

    def __init__(self) -> None:
        super().__init__()
        self.sending = asyncio.Event()

    @asynccontextmanager
    async def carry(self, control: VLLMControl, weights: object) -> AsyncIterator[Send]:
        yield self._send

    async def _send(self) -> None:
        self.sending.set()
        await asyncio.sleep(3600)


async def test_a_transfer_that_hangs_ends_at_its_deadline_and_leaves_no_server_paused(tmp_path: Path) -> None:
    server = ScriptedVLLM()
    async with publishing(server, tmp_path, transfer=HangingTransfer(), timeout_s=0.05) as publisher:
        with pytest.raises(PublishFailed, match="TimeoutError"):
            await publisher.publish(TinySource(), 1)
    assert (server.label, server.paused) == ("incomplete", False)


async def test_a_publish_that_is_cancelled_leaves_no_server_paused(tmp_path: Path) -> None:
    server = ScriptedVLLM()
    transfer = HangingTransfer()
    async with publishing(server, tmp_path, transfer=transfer) as publisher:
        running = asyncio.create_task(publisher.publish(TinySource(), 1))
        await transfer.sending.wait()
        assert server.paused
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (server.label, server.paused) == ("incomplete", False)

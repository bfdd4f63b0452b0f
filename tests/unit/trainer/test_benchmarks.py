"""What the trainer's benchmarks compare is alike on both sides. That they run, `make bench-trainer` shows."""

import asyncio
from typing import cast

import pytest
import torch

from benchmarks import rollout, turn_synchronous, weights
from cellar_client import AsyncCellar
from cellar_trainer.rollouts.rollout import RolloutOptions
from cellar_trainer.types import Metrics
from cellar_trainer.weights import WeightPublisher, WeightSource
from demo.arithmetic import PHRASES, TRIGGER
from demo.tiny_model import byte_tokenizer
from tests.vllm_server import TinySource


@torch.no_grad()
def test_the_model_of_the_letters_is_as_large_as_it_says_and_says_letters() -> None:
    tokenizer = byte_tokenizer(TRIGGER, *PHRASES)
    model = rollout.WORKLOADS["letters"].make(tokenizer, [])
    probable = model(torch.tensor([tokenizer.encode("2 + 2")])).logits[0, -1].topk(26).indices
    assert len(model.model.layers) == 8
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e6) == 26
    assert sorted(tokenizer.decode(probable)) == [chr(code) for code in range(ord("a"), ord("z") + 1)]


async def test_the_baseline_closes_its_sessions_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = asyncio.Barrier(turn_synchronous.TRAJECTORIES)

    class Closing:
        async def __aexit__(self, *_: object) -> None:
            await everyone.wait()

    monkeypatch.setattr(RolloutOptions, "notebook", lambda *_, seed: Closing())
    async with asyncio.timeout(5), turn_synchronous._notebooks(cast(AsyncCellar, None)):
        pass


def test_each_loop_comes_first_as_often_as_the_others() -> None:
    orders = [turn_synchronous._order(["ours", "theirs", "awake"], number) for number in range(6)]
    assert [order[0] for order in orders] == ["ours", "theirs", "awake"] * 2
    assert all(sorted(order) == ["awake", "ours", "theirs"] for order in orders)


async def test_no_weights_are_published_twice() -> None:
    server = [TinySource(0).score(weights.PROBE)]

    class Remembering:
        async def publish(self, source: WeightSource, version: int) -> Metrics:
            server.append(source.score(weights.PROBE))
            return {"publish_s": float(version)}

    publishers = {name: cast(WeightPublisher, Remembering()) for name in ("file", "gloo")}
    measured = await weights.publish_in_turn(publishers, rounds=2)
    assert len({tuple(scores) for scores in server}) == len(server) == 7
    assert {name: len(runs) for name, runs in measured.items()} == {"file": 2, "gloo": 2}

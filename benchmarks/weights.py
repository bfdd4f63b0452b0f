"""How long it takes to give a tiny model's weights to vLLM on CPU: by file and by broadcast, in turn, on one server.

.venv/envs/trainer/bin/python -m benchmarks.weights [--rounds 30]

"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import torch

from cellar_trainer.policy.vllm import VLLMControl, VLLMPolicy
from cellar_trainer.types import Metrics
from cellar_trainer.weights import Broadcast, FileTransfer, GlooGroup, ServedPublisher, Transfer, WeightPublisher
from tests.vllm_server import TinySource, tiny_vllm

PROBE = range(64)
TARGET_S = 0.1


class TimedControl(VLLMControl):
    """Remembers how long each call took."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.took_s: dict[str, list[float]] = {}

    async def _call(self, method: str, route: str, body: dict[str, Any] | None = None) -> httpx.Response:
        started_s = time.perf_counter()
        response = await super()._call(method, route, body)
        self.took_s.setdefault(route.split("?")[0], []).append(time.perf_counter() - started_s)
        return response


async def measure(url: str, model: str, rounds: int) -> None:
    policy = VLLMPolicy(url, model)
    ways: dict[str, Transfer] = {
        "file": FileTransfer(),
        "gloo": Broadcast(partial(GlooGroup, host="127.0.0.1", timeout_s=60.0)),
    }
    controls = {name: TimedControl(url) for name in ways}
    publishers = {
        name: ServedPublisher(policy, controls[name], way, probe_ids=PROBE, max_difference=1e-4)
        for name, way in ways.items()
    }
    measured = await publish_in_turn(publishers, rounds)
    for name, runs in measured.items():
        report(name, runs, controls[name])
        await publishers[name].close()
    await policy.close()


async def publish_in_turn(publishers: Mapping[str, WeightPublisher], rounds: int) -> dict[str, list[Metrics]]:
    """Every publish has weights of its own, or its proof would hold with those that were there before. The server
    starts with those of seed 0."""
    measured: dict[str, list[Metrics]] = {name: [] for name in publishers}
    versions = count(1)
    for number in range(rounds + 1):
        for name, publisher in publishers.items():
            version = next(versions)
            metrics = await publisher.publish(TinySource(version), version)
            if number:  # the first one also meets the server
                measured[name].append(metrics)
    return measured


def report(name: str, runs: list[Metrics], control: TimedControl) -> None:
    publish_s = [run["publish_s"] for run in runs]
    proof_s = [run["publish_proof_s"] for run in runs]
    difference = max(run["publish_difference"] for run in runs)
    print(
        f"{name}: publish {summary(publish_s)}, proof {summary(proof_s)}, target {TARGET_S * 1e3:.0f} ms, "
        f"largest difference of a log-probability {difference:.1e}"
    )
    for route, took_s in control.took_s.items():
        print(f"    {route:32} {summary(took_s)}")


def summary(times_s: list[float]) -> str:
    return f"median {statistics.median(times_s) * 1e3:.1f} ms, best {min(times_s) * 1e3:.1f} ms, n {len(times_s)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds: int = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, tiny_vllm(Path(folder)) as server:
        print("load", os.getloadavg(), "before")
        asyncio.run(measure(server.url, server.model, rounds))
        print("load", os.getloadavg(), "after")


if __name__ == "__main__":
    main()

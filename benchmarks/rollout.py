"""Rollout throughput against the same vLLM driven flat out: sampled tokens per second, interleaved.

    make bench            or: .venv/envs/trainer/bin/python -m benchmarks.rollout [--rounds 5]

One round plays trajectories of the demo's task (two turns, cells through a real executor), then sends the very same
generation requests again (same prefixes, same numbers of tokens) with nothing in between: no tools, no turns to wait
for. The ratio says what everything that is not generation costs.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from cellar_trainer.collect import Rollouts
from cellar_trainer.config import load_config
from cellar_trainer.rollout import derive_seed
from cellar_trainer.serving import VLLMServer
from cellar_trainer.tasks import load_tasks
from cellar_trainer.types import Sampling, SegmentKind, Trajectory
from cellar_trainer.wiring import open_rollouts
from demo.__main__ import CONFIG, SEED
from demo.arithmetic import split, write_tasks
from demo.executor import executor
from demo.tiny_model import make_model, make_tokenizer, save, warm_start

TRAJECTORIES = 256
CONCURRENCY = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        tasks, _ = split(0, SEED)
        write_tasks(tasks[:TRAJECTORIES], out / "tasks.jsonl")
        tokenizer = make_tokenizer()
        model = make_model(tokenizer, seed=SEED)
        warm_start(model, tokenizer, tasks, steps=150, seed=SEED, on_step=lambda step, loss: None)
        save(model, tokenizer, out / "model")
        with (
            executor(out / "executor", out / "executor.log") as url,
            VLLMServer(out / "model", log=out / "log") as vllm,
        ):
            changes = [f"output={out}", f"model.path={out / 'model'}", f"tasks.path={out / 'tasks.jsonl'}"]
            changes += [f"executor.url={url}", f"policy.url={vllm.url}", f"rollout.concurrency={CONCURRENCY}"]
            asyncio.run(_measure(changes, out / "tasks.jsonl", rounds))


async def _measure(changes: list[str], tasks_path: Path, rounds: int) -> None:
    tasks = load_tasks(tasks_path)
    ratios: list[float] = []
    print("| round | tokens | rollouts, tokens/s | flat out, tokens/s | ratio |\n|---|---|---|---|---|")
    async with open_rollouts(load_config(CONFIG, changes)) as rollouts:
        await rollouts.play([(task, 0) for task in tasks[:CONCURRENCY]])  # both sides start warm
        for number in range(rounds):
            jobs = [(task, derive_seed(SEED, "bench", number, task.task_id)) for task in tasks]
            started_s = time.perf_counter()
            played = [trajectory for trajectory in await rollouts.play(jobs) if trajectory is not None]
            rollouts_s = time.perf_counter() - started_s
            flat_out_s = await _flat_out(rollouts, played)
            tokens = sum(trajectory.sampled_count for trajectory in played)
            ratios.append(flat_out_s / rollouts_s)
            rates = f"{tokens / rollouts_s:.0f} | {tokens / flat_out_s:.0f}"
            print(f"| {number + 1} | {tokens} | {rates} | {ratios[-1]:.2f} |", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


async def _flat_out(rollouts: Rollouts, played: list[Trajectory]) -> float:
    """Seconds that the same requests take when they are all there at once; prefixes are in the cache for both sides."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def request(prefix: tuple[int, ...], count: int) -> None:
        async with slots:
            options = rollouts.options.sampling
            await rollouts.policy.generate(prefix, Sampling(count, trigger_id=options.trigger_id, seed=count))

    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as together:
        for trajectory in played:
            for prefix, count in _requests(trajectory):
                together.create_task(request(prefix, count))
    return time.perf_counter() - started_s


def _requests(trajectory: Trajectory) -> Iterator[tuple[tuple[int, ...], int]]:
    prefix: tuple[int, ...] = ()
    for segment in trajectory.segments:
        if segment.kind is SegmentKind.SAMPLED:
            yield prefix, len(segment.token_ids)
        prefix += segment.token_ids


if __name__ == "__main__":
    main()

"""Rollout throughput against the same vLLM driven flat out: sampled tokens per second, interleaved.

    make bench            or: .venv/envs/trainer/bin/python -m benchmarks.rollout [--rounds 5] [--only demo|letters]

One round plays trajectories with real cells in a real executor, then sends the very same generation requests again
(same prefixes, same numbers of tokens) with nothing in between: no tools, no turns to wait for. The ratio says what
everything that is not generation costs. Two workloads:

* demo: the demo's task and model (0.4 M parameters). A trajectory is some 25 tokens and a session, so it is the tools
  and the processor they share with vLLM that are measured.
* letters: a model of 26 M parameters that samples random letters, and turns of 32 to 128 tokens, each ended by a block
  of code and the trigger that are put in by hand: two runs, then an answer. Here it is generation that takes the time.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from cellar_trainer.config import load_config
from cellar_trainer.data.tasks import load_tasks
from cellar_trainer.policy.protocol import Policy
from cellar_trainer.rollouts.collect import Rollouts
from cellar_trainer.rollouts.rollout import derive_seed
from cellar_trainer.serving import VLLMServer
from cellar_trainer.types import Completion, FinishReason, Sampling, Task
from cellar_trainer.wiring import open_rollouts
from demo.__main__ import CONFIG
from demo.arithmetic import (
    BOXED_CLOSE,
    BOXED_OPEN,
    FENCE_CLOSE,
    FENCE_OPEN,
    PHRASES,
    TRIGGER,
    Problem,
    split,
    write_tasks,
)
from demo.executor import executor
from demo.tiny_model import EOS, byte_tokenizer, make_model, qwen3, save, warm_start

SEED = 0
CONCURRENCY = 64
RUNS = 2
TURN_TOKENS = (32, 128)


@dataclass
class Recorded:
    """A policy that remembers what it was asked for, so that it can be asked again."""

    policy: Policy
    requests: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    """Prefix, and the number of tokens that were sampled after it."""

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        completion = await self.policy.generate(token_ids, sampling)
        self.requests.append((tuple(token_ids), len(completion.token_ids)))
        return completion

    async def close(self) -> None:
        await self.policy.close()


@dataclass
class Tailed:
    """A policy whose turns are its own letters and then, by hand, a block and the trigger, or at last the answer."""

    policy: Policy
    tokenizer: PreTrainedTokenizerFast

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        length = Random(sampling.seed).randint(*TURN_TOKENS)
        letters = await self.policy.generate(token_ids, replace(sampling, max_tokens=length, stop_token_ids=()))
        runs = list(token_ids).count(self._id(TRIGGER))
        block = f"{FENCE_OPEN}x={runs}+1\nx{FENCE_CLOSE}{TRIGGER}"
        text = block if runs < RUNS else f"{BOXED_OPEN}{runs}{BOXED_CLOSE}{EOS}"
        tail = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return Completion(
            letters.token_ids + tail,
            letters.logprobs + (0.0,) * len(tail),
            letters.trigger_logprobs + (0.0,) * len(tail),
            letters.policy_versions + letters.policy_versions[:1] * len(tail),
            FinishReason.STOP,
            tail[-1],
        )

    async def close(self) -> None:
        await self.policy.close()

    def _id(self, text: str) -> int:
        (token_id,) = self.tokenizer.encode(text, add_special_tokens=False)
        return int(token_id)


@dataclass(frozen=True)
class Workload:
    trajectories: int
    make: Callable[[PreTrainedTokenizerFast, list[Problem]], Qwen3ForCausalLM]
    around: Callable[[Policy, PreTrainedTokenizerFast], Policy]
    """What stands between the rollouts and the policy."""
    changes: tuple[str, ...] = ()
    """To the demo's configuration."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=WORKLOADS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, workload in WORKLOADS.items():
        if options.only in (None, name):
            print(f"{name}: {workload.trajectories} trajectories, {CONCURRENCY} at once", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                _serve_and_measure(workload, Path(folder), options.rounds)


def _serve_and_measure(workload: Workload, out: Path, rounds: int) -> None:
    problems, _ = split(0, SEED)
    write_tasks(problems[: workload.trajectories], out / "tasks.jsonl")
    tokenizer = byte_tokenizer(TRIGGER, *PHRASES)
    save(workload.make(tokenizer, problems), tokenizer, out / "model")
    with ExitStack() as stack:
        url = stack.enter_context(executor(out / "executor", out / "executor.log"))
        vllm = stack.enter_context(VLLMServer(out / "model", log=out / "log", max_sequences=CONCURRENCY, threads=1))
        changes = [f"output={out}", f"model.path={out / 'model'}", f"tasks.path={out / 'tasks.jsonl'}"]
        changes += [f"executor.url={url}", f"policy.url={vllm.url}", f"rollout.concurrency={CONCURRENCY}"]
        changes += workload.changes
        asyncio.run(_measure(workload, changes, tokenizer, rounds))


async def _measure(workload: Workload, changes: list[str], tokenizer: PreTrainedTokenizerFast, rounds: int) -> None:
    ratios: list[float] = []
    print("| round | tokens | rollouts, tokens/s | flat out, tokens/s | ratio | load |\n|---|---|---|---|---|---|")
    config = load_config(CONFIG, changes)
    tasks = load_tasks(Path(config.tasks.path))
    async with open_rollouts(config) as opened:
        recorded = Recorded(opened.policy)
        rollouts = replace(opened, policy=workload.around(recorded, tokenizer))
        await _play(rollouts, tasks[:CONCURRENCY], number=-1)  # both sides start warm
        for number in range(rounds):
            recorded.requests.clear()
            rollouts_s = await _play(rollouts, tasks, number)
            flat_out_s = await _flat_out(opened, recorded.requests)
            tokens = sum(count for _, count in recorded.requests)
            ratios.append(flat_out_s / rollouts_s)
            rates = f"{tokens / rollouts_s:.0f} | {tokens / flat_out_s:.0f}"
            print(f"| {number + 1} | {tokens} | {rates} | {ratios[-1]:.2f} | {os.getloadavg()[0]:.1f} |", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}\n", flush=True)


async def _play(rollouts: Rollouts, tasks: Sequence[Task], number: int) -> float:
    """Seconds that one trajectory of each task takes."""
    started_s = time.perf_counter()
    await rollouts.play([(task, derive_seed(SEED, "bench", number, task.task_id)) for task in tasks])
    return time.perf_counter() - started_s


async def _flat_out(rollouts: Rollouts, requests: Sequence[tuple[tuple[int, ...], int]]) -> float:
    """Seconds that the same requests take when they are all there at once; prefixes are in the cache for both sides."""
    slots = asyncio.Semaphore(CONCURRENCY)
    trigger_id = rollouts.options.sampling.trigger_id

    async def request(prefix: tuple[int, ...], count: int) -> None:
        async with slots:
            await rollouts.policy.generate(prefix, Sampling(count, trigger_id=trigger_id, seed=count))

    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as together:
        for prefix, count in requests:
            together.create_task(request(prefix, count))
    return time.perf_counter() - started_s


def _demo_model(tokenizer: PreTrainedTokenizerFast, problems: list[Problem]) -> Qwen3ForCausalLM:
    model = make_model(tokenizer, seed=SEED)
    warm_start(model, tokenizer, problems, steps=150, seed=SEED, on_step=lambda step, loss: None)
    return model


@torch.no_grad()
def _letters_model(tokenizer: PreTrainedTokenizerFast, _: list[Problem]) -> Qwen3ForCausalLM:
    """Random weights, but for one channel that no layer writes to: it is the same for all tokens, and through it the
    head forbids all that are not letters."""
    model = qwen3(
        tokenizer,
        seed=SEED,
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.model.embed_tokens.weight[:, 0] = 1.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    letters = tokenizer.convert_tokens_to_ids([chr(code) for code in range(ord("a"), ord("z") + 1)])
    model.lm_head.weight[:, 0] = -100.0
    model.lm_head.weight[letters, 0] = 0.0
    return model


WORKLOADS = {
    "demo": Workload(256, _demo_model, lambda policy, tokenizer: policy),
    "letters": Workload(128, _letters_model, Tailed, (f"rollout.max_runs={RUNS}", "rollout.max_turn_tokens=256")),
}


if __name__ == "__main__":
    main()

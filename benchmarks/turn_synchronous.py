"""Our loop against the reference's, on the same trajectories: wall time of a batch, with a real executor.

    .venv/envs/trainer/bin/python -m benchmarks.turn_synchronous [--rounds 3]

The reference (IH-GRPO's code, like SimpleTIR's) advances a whole batch turn by turn: nobody's code runs before the last
turn has been sampled, nobody samples before the last code has run, and its sandbox client sleeps 2 s per snippet. Three
loops play the same trajectories, token by token: ours, turn-synchronous, and turn-synchronous without the sleep, so
that what the barrier costs is seen by itself. Each round begins with another of them.

The policy is a script: each turn has a length, drawn once, and takes that many times `TOKEN_S`, in all three loops
alike. Of the runs most take no time, one in ten waits for up to 2 s, and one in fifty does not end and is stopped after
3 s. The sleeps of a turn go on side by side: if the reference's do not, that is in its favour.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from cellar_client import AsyncCellar
from cellar_trainer.rollouts.notebook import Notebook
from cellar_trainer.rollouts.parsing import parse_turn
from cellar_trainer.rollouts.rendering import Renderer, RenderingOptions
from cellar_trainer.rollouts.rollout import RolloutOptions, derive_seed, rollout
from cellar_trainer.types import Completion, FinishReason, Sampling, Task
from demo.arithmetic import PHRASES, TRIGGER
from demo.executor import executor
from demo.tiny_model import EOS, byte_tokenizer

SEED = 0
TRAJECTORIES = 48
MAX_TURNS = 5
TOKENS_MEDIAN, TOKENS_SIGMA, TOKENS_MOST = 60.0, 1.0, 600
TOKEN_S = 0.005
REFERENCE_SLEEP_S = 2.0

TOKENIZER = byte_tokenizer(TRIGGER, *PHRASES)
RENDERER = Renderer(TOKENIZER, RenderingOptions(prompt="{problem}\n", chat_template=False))
(TRIGGER_ID,) = TOKENIZER.encode(TRIGGER, add_special_tokens=False)
(FILLER_ID,) = TOKENIZER.encode("a", add_special_tokens=False)
OPTIONS = RolloutOptions(
    Sampling(TOKENS_MOST + 200, stop_token_ids=(TRIGGER_ID, TOKENIZER.eos_token_id), trigger_id=TRIGGER_ID),
    max_turns=MAX_TURNS,
)
TASKS = [Task(str(number), f"problem {number}", "1") for number in range(TRAJECTORIES)]

Transcript = list[list[int]]
"""The tokens of each trajectory."""


@dataclass(frozen=True)
class Script:
    """What the policy says, by the seed of the request: a turn's tokens, each of which takes `TOKEN_S`."""

    turns: dict[int | None, tuple[int, ...]]

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        turn = self.turns[sampling.seed]
        await asyncio.sleep(len(turn) * TOKEN_S)
        zeros = (0.0,) * len(turn)
        return Completion(turn, zeros, zeros, (0,) * len(turn), FinishReason.STOP, turn[-1])

    async def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, executor(Path(folder) / "data", Path(folder) / "log") as url:
        asyncio.run(_measure(url, rounds))


async def _measure(url: str, rounds: int) -> None:
    script = _script(Random(SEED))
    loops: dict[str, Callable[[AsyncCellar], Awaitable[Transcript]]] = {
        "ours": lambda cellar: _ours(script, cellar),
        "turn-synchronous": lambda cellar: _turn_synchronous(script, cellar, REFERENCE_SLEEP_S),
        "without the sleep": lambda cellar: _turn_synchronous(script, cellar, 0.0),
    }
    print("| round | ours, s | turn-synchronous, s | ratio | without the sleep, s | ratio | load |")
    print("|---|---|---|---|---|---|---|")
    async with AsyncCellar(url) as cellar:
        for number in range(rounds):
            seconds: dict[str, float] = {}
            transcripts: list[Transcript] = []
            for name in _order(list(loops), number):
                started_s = time.perf_counter()
                transcripts.append(await loops[name](cellar))
                seconds[name] = time.perf_counter() - started_s
            assert transcripts[0] == transcripts[1] == transcripts[2], "the loops played different trajectories"
            ours, theirs, awake = (seconds[name] for name in loops)
            ratios = f"{theirs:.1f} | {ours / theirs:.2f} | {awake:.1f} | {ours / awake:.2f}"
            print(f"| {number + 1} | {ours:.1f} | {ratios} | {os.getloadavg()[0]:.1f} |", flush=True)


def _order(names: list[str], number: int) -> list[str]:
    """Of a round: who comes first has the colder executor, and is another one each time."""
    first = number % len(names)
    return names[first:] + names[:first]


async def _ours(script: Script, cellar: AsyncCellar) -> Transcript:
    async def one(task: Task) -> list[int]:
        seed = _seed(task)
        async with OPTIONS.notebook(cellar, seed=seed) as notebook:
            return (await rollout(task, script, notebook, RENDERER, OPTIONS, seed=seed)).token_ids

    return await asyncio.gather(*map(one, TASKS))


async def _turn_synchronous(script: Script, cellar: AsyncCellar, sleep_s: float) -> Transcript:
    contexts = [list(RENDERER.prompt_ids(task)) for task in TASKS]
    async with _notebooks(cellar) as notebooks:
        active = list(range(len(TASKS)))
        for turn in range(MAX_TURNS):
            completions = await asyncio.gather(*(_sample(script, contexts[i], TASKS[i], turn) for i in active))
            asking: list[tuple[int, str]] = []
            for i, completion in zip(active, completions, strict=True):
                contexts[i] += completion.token_ids
                if completion.stop_token_id == TRIGGER_ID:
                    asking.append((i, RENDERER.text(completion.token_ids[:-1])))
            observations = await asyncio.gather(*(_observe(notebooks[i], text, sleep_s) for i, text in asking))
            active = [i for i, _ in asking]
            for i, observation in zip(active, observations, strict=True):
                contexts[i] += observation
    return contexts


@asynccontextmanager
async def _notebooks(cellar: AsyncCellar) -> AsyncIterator[list[Notebook]]:
    """One for each task. All are closed at once: closing them in turn would take time that is not the barrier's."""
    notebooks = [OPTIONS.notebook(cellar, seed=_seed(task)) for task in TASKS]
    try:
        yield notebooks
    finally:
        await asyncio.gather(*(notebook.__aexit__() for notebook in notebooks))


async def _sample(script: Script, context: list[int], task: Task, turn: int) -> Completion:
    return await script.generate(context, Sampling(1, seed=_turn_seed(task, turn)))


async def _observe(notebook: Notebook, text: str, sleep_s: float) -> tuple[int, ...]:
    run = await notebook.run(parse_turn(text).blocks)
    await asyncio.sleep(sleep_s)
    return RENDERER.observation_ids(run)


def _script(rng: Random) -> Script:
    """Every trajectory makes one to four runs, then answers."""
    turns: dict[int | None, tuple[int, ...]] = {}
    for task in TASKS:
        runs = rng.randint(1, MAX_TURNS - 1)
        for turn in range(runs + 1):
            last = "\\boxed{1}" + EOS if turn == runs else f"```python\nx = {turn}\n```\n and\n{_block(rng)}{TRIGGER}"
            length = min(round(rng.lognormvariate(0.0, TOKENS_SIGMA) * TOKENS_MEDIAN), TOKENS_MOST)
            ids = tuple(TOKENIZER.encode(last, add_special_tokens=False))
            turns[_turn_seed(task, turn)] = (FILLER_ID,) * max(0, length - len(ids)) + ids
    return Script(turns)


def _block(rng: Random) -> str:
    chance = rng.random()
    wait_s = 60.0 if chance < 0.02 else rng.uniform(0.0, 2.0) if chance < 0.12 else 0.0
    code = f"import time\ntime.sleep({wait_s:.2f})\n" if wait_s else ""
    return f"```python\n{code}print(x + {rng.randint(1, 99)})\n```"


def _seed(task: Task) -> int:
    return derive_seed(SEED, task.task_id)


def _turn_seed(task: Task, turn: int) -> int:
    """As `rollout` derives it."""
    return derive_seed(_seed(task), "turn", turn)


if __name__ == "__main__":
    main()

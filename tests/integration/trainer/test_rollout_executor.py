"""Rollouts against a real executor: what the model is shown, and what is left behind."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cellar_client import AsyncCellar
from cellar_client.retry import NO_RETRIES
from cellar_trainer.learning.model import control_tokens
from cellar_trainer.rewards.grader import Grader
from cellar_trainer.rollouts.collect import CollectOptions, Rollouts, TaskStream, collect
from cellar_trainer.rollouts.rendering import Renderer, RenderingOptions
from cellar_trainer.rollouts.rollout import RolloutFailed, RolloutOptions, rollout
from cellar_trainer.types import Completion, Sampling, SegmentKind, StopReason, Task, Trajectory
from tests.executor_process import ExecutorProcess
from tests.scripted import ScriptedPolicy, answer, call
from tests.tiny_model import TRIGGER, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
RENDERER = Renderer(TOKENIZER, RenderingOptions(prompt="{problem}", chat_template=False))
TOKENS = control_tokens(TOKENIZER, TRIGGER)
STOPS = (TOKENS.trigger_id, TOKENS.eos_id)
TASK = Task("t", "p", "1")


async def play(url: str, *turns: str, seed: int = 0, **changes: Any) -> Trajectory:
    options = RolloutOptions(Sampling(2000, stop_token_ids=STOPS, trigger_id=STOPS[0]), **changes)
    async with AsyncCellar(url) as cellar:
        policy = ScriptedPolicy(TOKENIZER, turns)
        async with options.notebook(cellar, seed=seed) as notebook:
            trajectory = await rollout(TASK, policy, notebook, RENDERER, options, seed=seed)
        assert await sessions(cellar) == 0, "every session is gone when its rollout ends"
    return trajectory


async def sessions(cellar: AsyncCellar) -> int:
    return len([session async for session in cellar.sessions()])


def observations(trajectory: Trajectory) -> list[str]:
    return [RENDERER.text(s.token_ids) for s in trajectory.segments if s.kind is SegmentKind.OBSERVATION]


async def test_cells_that_rested_run_in_order_at_the_trigger_and_names_live_on(executor: ExecutorProcess) -> None:
    trajectory = await play(
        executor.url, call("x = 6\nprint('first')", "y = x * 7\nprint(y)"), call("print(y + 1)"), answer("43")
    )
    first, second = observations(trajectory)
    assert first == "\nCode execution result: first\n42\n</tool_call>\n"
    assert "43" in second
    assert (trajectory.runs, trajectory.cells, trajectory.deferred_cells) == (2, 3, 1)
    assert trajectory.stop_reason is StopReason.ANSWERED


async def test_an_error_is_shown_and_later_cells_of_the_run_are_skipped(executor: ExecutorProcess) -> None:
    failing = call("x = 1", "x / 0", "y = x + 5\nprint('never')")
    shown = observations(await play(executor.url, failing, call("print(x)"), answer("1")))
    assert shown[0] == "\nCode execution result: ZeroDivisionError: division by zero\n</tool_call>\n"
    assert shown[1] == "\nCode execution result: 1\n</tool_call>\n", "what the cells before it defined stays"


async def test_an_atomic_run_that_fails_leaves_nothing_behind(executor: ExecutorProcess) -> None:
    failing = call("y = 1", "y / 0")
    shown = observations(
        await play(executor.url, call("x = 1"), failing, call("print(y)"), answer("1"), atomic_runs=True)
    )
    assert "ZeroDivisionError" in shown[1]
    assert "NameError" in shown[2]


async def test_a_cell_that_does_not_end_is_a_timeout_that_the_model_sees(executor: ExecutorProcess) -> None:
    trajectory = await play(executor.url, call("while True: pass"), answer("1"), cell_timeout_s=0.5)
    assert "timeout" in observations(trajectory)[0]
    assert trajectory.stop_reason is StopReason.ANSWERED


@pytest.mark.parametrize(
    ("deadly", "shown_as"),
    [
        ("import os\nos._exit(1)", "killed"),
        ("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass", "timeout"),
    ],
)
async def test_a_cell_that_kills_its_kernel_is_shown_and_the_trajectory_is_played_on_and_graded(
    executor: ExecutorProcess, deadly: str, shown_as: str
) -> None:
    turns = [call("x = 1"), call(deadly), call("y = 2", "print(y)"), call("print(x)"), answer("1")]
    options = RolloutOptions(Sampling(2000, stop_token_ids=STOPS, trigger_id=STOPS[0]), cell_timeout_s=0.5)
    async with AsyncCellar(executor.url) as cellar, Grader() as grader:
        policy = ScriptedPolicy(TOKENIZER, turns)
        [trajectory] = await Rollouts(policy, cellar, RENDERER, grader, options, concurrency=1).play([(TASK, 0)])
        assert await sessions(cellar) == 0
    assert trajectory is not None
    assert trajectory.correct
    _, died, after, lost = observations(trajectory)
    assert shown_as in died
    assert after == "\nCode execution result: 2\n</tool_call>\n"
    assert "NameError" in lost


async def test_random_numbers_repeat_with_the_seed_of_the_trajectory(executor: ExecutorProcess) -> None:
    turn = call("import random\nprint(random.random())")
    shown = [observations(await play(executor.url, turn, answer("1"), seed=seed)) for seed in (1, 1, 2)]
    assert shown[0] == shown[1] != shown[2]


async def test_a_run_of_several_blocks_in_an_open_notebook(executor: ExecutorProcess) -> None:
    shown = observations(await play(executor.url, call("x = 1"), call("x += 1", "x += 1", "x"), answer("3")))
    assert shown[1] == "\nCode execution result: 3\n</tool_call>\n"


async def test_a_straggler_ends_at_its_deadline_and_takes_its_session_with_it(executor: ExecutorProcess) -> None:
    turns = [call("x = 1"), call("import time\ntime.sleep(60)")]
    started_s = time.monotonic()
    trajectory = await play(executor.url, *turns, deadline_s=3.0, cell_timeout_s=60.0)
    assert (trajectory.stop_reason, trajectory.runs) == (StopReason.DEADLINE, 1)
    assert time.monotonic() - started_s < 30, "neither the cell nor the end of its session is waited for"


async def test_an_executor_that_goes_away_costs_the_trajectories_that_needed_it_and_no_others(tmp_path: Path) -> None:
    class Killing(ScriptedPolicy):
        async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
            if len(self.asked) == 3:  # two have answered, a third has just been given its session
                doomed.kill()
            return await super().generate(token_ids, sampling)

    turns = [answer("1"), answer("2"), call("x = 1"), call("print(x)"), answer("3")]
    options = RolloutOptions(Sampling(2000, stop_token_ids=STOPS, trigger_id=STOPS[0]), deadline_s=60)
    with ExecutorProcess(tmp_path) as doomed:
        async with AsyncCellar(doomed.url, retries=NO_RETRIES) as cellar, Grader() as grader:
            policy = Killing(TOKENIZER, turns)
            rollouts = Rollouts(policy, cellar, RENDERER, grader, options, concurrency=1)
            stream, wanted = TaskStream([TASK], seed=0), CollectOptions(tasks=1, siblings=4)
            collection = await collect(stream, rollouts, wanted, seed=0)
    assert collection.dropped == {"rollouts_executor": 1}
    assert [t.correct for t in collection.groups[0].trajectories] == [True, False, False]


async def test_cells_after_the_last_trigger_never_run(executor: ExecutorProcess) -> None:
    trajectory = await play(executor.url, call("x = 1"), "```python\nx = 2\n```\n" + answer("1"))
    assert (trajectory.runs, trajectory.unrun_cells) == (1, 1)


async def test_an_executor_that_is_not_there_fails_the_rollout(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path) as short_lived:
        url = short_lived.url
    options = RolloutOptions(Sampling(2000, stop_token_ids=STOPS, trigger_id=STOPS[0]), deadline_s=60)
    async with AsyncCellar(url) as cellar, options.notebook(cellar, seed=0) as notebook:
        policy = ScriptedPolicy(TOKENIZER, [call("x = 1")])
        with pytest.raises(RolloutFailed, match="t: ") as raised:
            await rollout(TASK, policy, notebook, RENDERER, options, seed=0)
    assert raised.value.fault == "executor"

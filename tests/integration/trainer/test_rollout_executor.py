"""Rollouts against a real executor: what the model is shown, and what is left behind."""

from pathlib import Path
from typing import Any

import pytest

from cellar_client import AsyncCellar
from cellar_trainer.model import control_tokens
from cellar_trainer.rendering import Renderer, RenderingOptions
from cellar_trainer.rollout import RolloutFailed, RolloutOptions, rollout
from cellar_trainer.types import Sampling, SegmentKind, StopReason, Task, Trajectory
from tests.executor_process import ExecutorProcess
from tests.scripted import ScriptedPolicy, answer, call
from tests.tiny_model import TRIGGER, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
RENDERER = Renderer(TOKENIZER, RenderingOptions(prompt="{problem}", chat_template=False))
TOKENS = control_tokens(TOKENIZER, TRIGGER)
STOPS = (TOKENS.trigger_id, TOKENS.eos_id)


async def play(url: str, *turns: str, seed: int = 0, **changes: Any) -> Trajectory:
    options = RolloutOptions(Sampling(2000, stop_token_ids=STOPS, trigger_id=STOPS[0]), **changes)
    async with AsyncCellar(url) as cellar:
        policy = ScriptedPolicy(TOKENIZER, turns)
        trajectory = await rollout(Task("t", "p", "1"), policy, cellar, RENDERER, options, seed=seed)
        assert [session async for session in cellar.sessions()] == [], "every session is gone when its rollout ends"
    return trajectory


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
    trajectory = await play(executor.url, call("x = 1", "x / 0", "y = x + 5\nprint('never')"), answer("1"))
    (shown,) = observations(trajectory)
    assert "ZeroDivisionError" in shown
    assert "never" not in shown


async def test_a_cell_that_does_not_end_is_a_timeout_that_the_model_sees(executor: ExecutorProcess) -> None:
    trajectory = await play(executor.url, call("while True: pass"), answer("1"), cell_timeout_s=0.5)
    assert "timeout" in observations(trajectory)[0]
    assert trajectory.stop_reason is StopReason.ANSWERED


async def test_random_numbers_repeat_with_the_seed_of_the_trajectory(executor: ExecutorProcess) -> None:
    turn = call("import random\nprint(random.random())")
    shown = [observations(await play(executor.url, turn, answer("1"), seed=seed)) for seed in (1, 1, 2)]
    assert shown[0] == shown[1] != shown[2]


async def test_cells_after_the_last_trigger_never_run(executor: ExecutorProcess) -> None:
    trajectory = await play(executor.url, call("x = 1"), "```python\nx = 2\n```\n" + answer("1"))
    assert (trajectory.runs, trajectory.unrun_cells) == (1, 1)


async def test_an_executor_that_is_not_there_fails_the_rollout(tmp_path: Path) -> None:
    with ExecutorProcess(tmp_path) as short_lived:
        url = short_lived.url
    options = RolloutOptions(Sampling(2000, stop_token_ids=STOPS, trigger_id=STOPS[0]), deadline_s=60)
    async with AsyncCellar(url) as cellar:
        policy = ScriptedPolicy(TOKENIZER, [call("x = 1")])
        with pytest.raises(RolloutFailed, match="t: "):
            await rollout(Task("t", "p", "1"), policy, cellar, RENDERER, options, seed=0)

"""The rollout's rules, with a policy that says what it is told."""

import asyncio
from typing import Any, cast

import pytest

from cellar_client.errors import CellarError
from cellar_client.schemas import Run
from cellar_trainer.learning.model import control_tokens
from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.rollouts.parsing import ParsedTurn
from cellar_trainer.rollouts.rendering import Renderer, RenderingOptions
from cellar_trainer.rollouts.rollout import RolloutFailed, RolloutOptions, derive_seed, rollout, verdict
from cellar_trainer.types import Completion, FinishReason, Sampling, SegmentKind, StopReason, Task, Trajectory
from tests.scripted import InProcessCellar, InProcessSession, ScriptedPolicy, answer, call
from tests.tiny_model import EOS, TRIGGER, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
RENDERER = Renderer(TOKENIZER, RenderingOptions(prompt="{problem}=", chat_template=False))
TOKENS = control_tokens(TOKENIZER, TRIGGER)
TRIGGER_ID, EOS_ID = TOKENS.trigger_id, TOKENS.eos_id
TASK = Task("t", "6*7", "42")


def options(max_turn_tokens: int = 400, **changes: Any) -> RolloutOptions:
    sampling = Sampling(max_turn_tokens, stop_token_ids=(TRIGGER_ID, EOS_ID), trigger_id=TRIGGER_ID)
    return RolloutOptions(sampling=sampling, **changes)


async def play(
    *turns: str | Exception | asyncio.Event,
    cellar: InProcessCellar | None = None,
    oldest_version: int = 0,
    **changes: Any,
) -> tuple[Trajectory, ScriptedPolicy]:
    policy, chosen = ScriptedPolicy(TOKENIZER, turns), options(**changes)
    async with chosen.notebook(cast(Any, cellar or InProcessCellar()), seed=7) as notebook:
        trajectory = await rollout(TASK, policy, notebook, RENDERER, chosen, seed=7, oldest_version=oldest_version)
    return trajectory, policy


def text(trajectory: Trajectory, kind: SegmentKind) -> list[str]:
    return [RENDERER.text(s.token_ids) for s in trajectory.segments if s.kind is kind]


async def test_cells_rest_until_the_trigger_and_the_observation_is_masked() -> None:
    first, last = call("x = 6", "y = x * 7\nprint(y)"), answer("42")
    trajectory, _ = await play(first, last)

    prompt, turn, observation, end = trajectory.segments
    assert [s.kind.value for s in trajectory.segments] == ["prompt", "sampled", "observation", "sampled"]
    assert RENDERER.text(turn.token_ids) == first
    assert "42" in RENDERER.text(observation.token_ids)
    assert trajectory.loss_mask == [0] * len(prompt.token_ids) + [1] * len(turn.token_ids) + [0] * len(
        observation.token_ids
    ) + [1] * len(end.token_ids)
    assert (trajectory.stop_reason, trajectory.answer) == (StopReason.ANSWERED, "42")
    assert (trajectory.runs, trajectory.cells, trajectory.deferred_cells, trajectory.unrun_cells) == (1, 2, 1, 0)
    assert trajectory.policy_versions == (3, 3)


async def test_each_request_extends_the_one_before_by_what_was_sampled_and_observed() -> None:
    trajectory, policy = await play(call("x = 1"), call("print(x)"), answer("1"))
    prompts = [ids for ids, _ in policy.asked]
    assert len(prompts) == 3
    for shorter, longer in zip(prompts, prompts[1:], strict=False):
        assert longer[: len(shorter)] == shorter
    assert trajectory.token_ids[: len(prompts[-1])] == prompts[-1]


async def test_an_answer_printed_by_a_run_ends_the_trajectory_after_its_observation() -> None:
    block = r"print(r'\boxed{42}')"
    trajectory, _ = await play(call(block))
    assert (trajectory.stop_reason, trajectory.answer) == (StopReason.ANSWERED, "42")
    assert trajectory.segments[-1].kind is SegmentKind.OBSERVATION

    trajectory, _ = await play(call(block), answer("41"), stop_on_printed_answer=False)
    assert trajectory.answer == "41"


async def test_a_failing_cell_is_an_observation_and_the_trajectory_goes_on() -> None:
    trajectory, _ = await play(call("1 / 0"), answer("?"))
    assert "ZeroDivisionError" in text(trajectory, SegmentKind.OBSERVATION)[0]
    assert trajectory.stop_reason is StopReason.ANSWERED


async def test_a_cell_that_kills_its_session_is_an_observation_and_the_trajectory_goes_on() -> None:
    trajectory, _ = await play(call("x = 1"), call("raise SystemExit"), call("print(x)"), answer("1"))
    _, killed, after = text(trajectory, SegmentKind.OBSERVATION)
    assert "killed" in killed
    assert "NameError" in after
    assert trajectory.stop_reason is StopReason.ANSWERED


async def test_a_turn_of_more_blocks_than_can_be_run_is_void() -> None:
    trajectory, _ = await play(call(*["1"] * 1001), max_turn_tokens=10**6, max_context_tokens=10**6)
    assert trajectory.stop_reason is StopReason.VOID
    assert (trajectory.runs, trajectory.cells, trajectory.unrun_cells) == (0, 1001, 1001)


async def test_a_trivial_split_is_not_counted_as_deferral() -> None:
    split = f"```python\nx = 1\n``````python\nprint(x)\n```{TRIGGER}"
    trajectory, _ = await play(split, answer("1"))
    assert (trajectory.cells, trajectory.runs, trajectory.deferred_cells) == (2, 1, 0)

    trajectory, _ = await play(split, answer("1"), split_check=False)
    assert trajectory.deferred_cells == 1


@pytest.mark.parametrize("turn", ["No answer." + EOS, "No block." + TRIGGER, "```python\nx = 1\n```" + EOS])
async def test_a_turn_with_neither_an_answer_nor_a_run_of_a_cell_is_void(turn: str) -> None:
    trajectory, _ = await play(turn)
    assert trajectory.stop_reason is StopReason.VOID
    assert trajectory.answer is None


async def test_blocks_after_the_last_run_are_counted_and_never_run() -> None:
    cellar = InProcessCellar()
    trajectory, _ = await play("```python\nx = 2\n```\n" + answer("1"), cellar=cellar)
    assert (trajectory.cells, trajectory.unrun_cells, trajectory.runs) == (1, 1, 0)
    assert cellar.requests == 0, "there is nothing to ask the executor for"


async def test_the_run_of_the_last_turn_is_made_and_no_turn_follows_it() -> None:
    trajectory, policy = await play(call("x = 1"), call("print(x)"), max_turns=2)
    assert (trajectory.stop_reason, trajectory.runs, len(policy.asked)) == (StopReason.MAX_TURNS, 2, 2)
    assert trajectory.segments[-1].kind is SegmentKind.OBSERVATION

    trajectory, _ = await play(call("x = 1"), call(r"print(r'\boxed{42}')"), max_turns=2)
    assert (trajectory.stop_reason, trajectory.answer) == (StopReason.ANSWERED, "42")


async def test_a_turn_that_answers_and_asks_for_a_run_is_run_unless_answers_come_first() -> None:
    both = "```python\nx = 1\n```\n" + r"So \boxed{1}." + TRIGGER
    trajectory, policy = await play(both, answer("2"))
    assert (trajectory.answer, trajectory.runs, len(policy.asked)) == ("2", 1, 2)

    trajectory, _ = await play(both, answer_outranks_run=True)
    assert (trajectory.answer, trajectory.runs) == ("1", 0)


async def test_tokens_of_weights_that_are_too_old_fail_the_rollout_at_once() -> None:
    trajectory, _ = await play(call("x = 1"), answer("1"), oldest_version=3)
    assert trajectory.policy_versions == (3, 3)

    with pytest.raises(RolloutFailed, match="version 3, older than 4") as raised:
        await play(call("x = 1"), oldest_version=4)
    assert raised.value.fault == "stale"


async def test_asking_for_one_run_too_many_ends_the_trajectory_without_it() -> None:
    trajectory, _ = await play(call("x = 1"), call("x = 2"), call("x = 3", "x = 4"), max_runs=2)
    assert trajectory.stop_reason is StopReason.MAX_RUNS
    assert (trajectory.runs, trajectory.unrun_cells, trajectory.deferred_cells) == (2, 2, 0)


async def test_a_turn_that_is_cut_by_its_length_ends_the_trajectory() -> None:
    trajectory, policy = await play("blah " * 10, max_turn_tokens=8)
    assert trajectory.stop_reason is StopReason.MAX_TOKENS
    assert trajectory.sampled_count == 8
    assert policy.asked[0][1].max_tokens == 8


async def test_the_context_bounds_every_turn_and_a_full_one_ends_the_trajectory() -> None:
    prompt = len(RENDERER.prompt_ids(TASK))
    trajectory, policy = await play("blah " * 10, max_context_tokens=prompt + 5)
    assert policy.asked[0][1].max_tokens == 5
    assert len(trajectory.token_ids) == prompt + 5

    trajectory, policy = await play(max_context_tokens=prompt)
    assert (trajectory.stop_reason, policy.asked) == (StopReason.MAX_TOKENS, [])


async def test_a_trajectory_past_its_deadline_ends_with_what_it_has_and_its_session_is_gone() -> None:
    cellar, hangs = InProcessCellar(), asyncio.Event()
    trajectory, _ = await play(call("x = 1"), hangs, cellar=cellar, deadline_s=0.1)
    assert (trajectory.stop_reason, trajectory.runs) == (StopReason.DEADLINE, 1)
    assert (len(cellar.opened), cellar.closed) == (1, 1)


async def test_a_run_that_never_ends_is_bounded_by_the_deadline_and_its_cells_count_as_not_run() -> None:
    class Hanging(InProcessSession):
        async def run(self) -> Run:
            await asyncio.Event().wait()
            raise AssertionError

    trajectory, _ = await play(call("x = 1", "y = 2"), cellar=InProcessCellar(make=Hanging), deadline_s=0.1)
    assert (trajectory.stop_reason, trajectory.runs, trajectory.unrun_cells) == (StopReason.DEADLINE, 0, 2)


async def test_a_session_is_made_by_the_first_run_and_deleted() -> None:
    cellar = InProcessCellar()
    await play(answer("1"), cellar=cellar)
    assert cellar.opened == []
    await play(call("x = 1"), answer("1"), cellar=cellar, memory_mb=64, deadline_s=9.0)
    assert cellar.opened == [{"limits": {"memory_mb": 64}, "seed": derive_seed(7, "session"), "idle_ttl_s": 9.0}]
    assert cellar.closed == 1


@pytest.mark.parametrize("when", [0, 1])
async def test_a_policy_that_is_not_there_fails_the_rollout_and_its_session_is_gone(when: int) -> None:
    cellar = InProcessCellar()
    turns: list[str | Exception] = [call("x = 1"), answer("1")]
    turns[when] = PolicyUnavailable("down")
    with pytest.raises(RolloutFailed, match="t: PolicyUnavailable: down") as raised:
        await play(*turns, cellar=cellar)
    assert raised.value.fault == "policy"
    assert cellar.closed == len(cellar.opened)


async def test_an_executor_that_fails_fails_the_rollout() -> None:
    with pytest.raises(RolloutFailed, match="no kernel") as raised:
        await play(call("x = 1"), cellar=InProcessCellar(failure=CellarError("no kernel")))
    assert raised.value.fault == "executor"


async def test_a_run_that_the_executor_lost_fails_the_rollout() -> None:
    class Losing(InProcessSession):
        async def run(self) -> Run:
            return (await super().run()).model_copy(update={"status": "lost"})

    with pytest.raises(RolloutFailed, match="lost a run") as raised:
        await play(call("x = 1"), cellar=InProcessCellar(make=Losing))
    assert raised.value.fault == "executor"


async def test_every_turn_has_a_seed_of_its_own_that_repeats_with_the_trajectory() -> None:
    turns = (call("x = 1"), call("x = 2"), answer("1"))
    seeds = [[sampling.seed for _, sampling in (await play(*turns))[1].asked] for _ in range(2)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3


def test_seeds_depend_on_every_part_and_fit_32_bits() -> None:
    seeds = {derive_seed(*parts) for parts in [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a", "1")]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(0, "a", 1) == 3328526120


@pytest.mark.parametrize(
    ("blocks", "boxed", "stop_id", "runs", "expected"),
    [
        (("x",), None, TRIGGER_ID, 0, None),
        (("x",), None, TRIGGER_ID, 5, StopReason.MAX_RUNS),
        (("x",), "1", TRIGGER_ID, 0, None),
        (("x",), "1", TRIGGER_ID, 5, StopReason.ANSWERED),
        ((), "1", None, 0, StopReason.ANSWERED),
        (("x",), None, None, 0, StopReason.MAX_TOKENS),
        (("x",), None, EOS_ID, 0, StopReason.VOID),
        ((), None, TRIGGER_ID, 0, StopReason.VOID),
        (("x",) * 1001, None, TRIGGER_ID, 0, StopReason.VOID),
        (("x",) * 1001, "1", TRIGGER_ID, 0, StopReason.ANSWERED),
        (("x" * 1_000_001,), None, TRIGGER_ID, 0, StopReason.VOID),
    ],
)
def test_verdict(
    blocks: tuple[str, ...], boxed: str | None, stop_id: int | None, runs: int, expected: StopReason | None
) -> None:
    finish = FinishReason.LENGTH if stop_id is None else FinishReason.STOP
    completion = Completion((1,), (0.0,), (0.0,), (0,), finish, stop_id)
    assert verdict(ParsedTurn(blocks, boxed, False), completion, runs, options(max_runs=5)) is expected

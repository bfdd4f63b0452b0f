"""Groups out of many rollouts: order, seeds, what is dropped, and what is drawn again."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_trainer.collect import CollectOptions, Rollouts, TaskStream, collect
from cellar_trainer.model import control_tokens
from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.rendering import Renderer, RenderingOptions
from cellar_trainer.rollout import RolloutFailed, RolloutOptions
from cellar_trainer.types import Completion, Sampling, Task
from tests.scripted import InProcessCellar, answer, scripted_completion
from tests.tiny_model import EOS, TRIGGER, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
RENDERER = Renderer(TOKENIZER, RenderingOptions(prompt="{problem}", chat_template=False))
TOKENS = control_tokens(TOKENIZER, TRIGGER)
STOPS = (TOKENS.trigger_id, TOKENS.eos_id)
TASKS = [Task(f"t{i}", f"problem {i}", str(i)) for i in range(5)]

Reply = Callable[[str, int], str | Exception]


@dataclass
class ReplyingPolicy:
    """Answers with what `reply` makes of the problem and of how often it was asked before."""

    reply: Reply
    asked: list[tuple[str, int | None]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        problem = RENDERER.text(token_ids)
        before = sum(p == problem for p, _ in self.asked)
        self.asked.append((problem, sampling.seed))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        reply = self.reply(problem, before)
        if isinstance(reply, Exception):
            raise reply
        return scripted_completion(TOKENIZER, reply, sampling)

    async def close(self) -> None:
        pass


@dataclass
class Same:
    """Grades by equality: the real grader is tested on its own."""

    @dataclass
    class Grade:
        correct: bool

    counts: Counter[str] = field(default_factory=Counter)

    async def grade(self, answer: str | None, expected: str) -> Grade:
        self.counts["correct" if answer == expected else "wrong"] += 1
        return self.Grade(answer == expected)


def rollouts(policy: ReplyingPolicy, concurrency: int = 8) -> Rollouts:
    options = RolloutOptions(sampling=Sampling(100, stop_token_ids=STOPS, trigger_id=STOPS[0]))
    return Rollouts(policy, cast(Any, InProcessCellar()), RENDERER, cast(Any, Same()), options, concurrency)


def number(problem: str) -> str:
    return problem.rpartition(" ")[2]


@given(st.integers(1, 7), st.integers(0, 100), st.lists(st.integers(0, 9), max_size=6))
def test_a_stream_gives_every_task_once_per_epoch_whatever_the_portions(
    size: int, seed: int, portions: list[int]
) -> None:
    tasks = [Task(str(i), "", "") for i in range(size)]
    whole = TaskStream(tasks, seed=seed)
    drawn = [draw for portion in [*portions, size] for draw in whole.take(portion)]
    assert [draw.number for draw in drawn] == list(range(sum(portions) + size))
    for start in range(0, len(drawn) - size + 1, size):
        assert {draw.task.task_id for draw in drawn[start : start + size]} == {task.task_id for task in tasks}


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_stream_opened_at_a_position_goes_on_as_if_it_had_never_stopped(before: int, after: int) -> None:
    stream = TaskStream(TASKS, seed=3)
    stream.take(before)
    assert TaskStream(TASKS, seed=3, position=stream.position).take(after) == stream.take(after)


async def test_siblings_are_grouped_graded_and_seeded_apart() -> None:
    policy = ReplyingPolicy(lambda problem, before: answer(number(problem) if before == 0 else "wrong"))
    stream = TaskStream(TASKS, seed=0)
    collection = await collect(stream, rollouts(policy), CollectOptions(tasks=3, siblings=4), seed=1)

    assert [len(group.trajectories) for group in collection.groups] == [4, 4, 4]
    for group in collection.groups:
        assert len({t.task.task_id for t in group.trajectories}) == 1
        assert sum(t.reward or 0 for t in group.trajectories) == 1.0
    assert len({seed for _, seed in policy.asked}) == 12
    assert len(collection.trajectories) == 12
    assert stream.position == 3
    assert collection.grades == {"correct": 3, "wrong": 9}


async def test_a_task_that_comes_again_is_another_group_with_other_seeds() -> None:
    policy = ReplyingPolicy(lambda problem, before: answer("1"))
    collection = await collect(TaskStream(TASKS[:1], seed=0), rollouts(policy), CollectOptions(tasks=2), seed=1)
    assert len({group.key for group in collection.groups}) == 2
    assert len({seed for _, seed in policy.asked}) == 16


async def test_concurrency_is_bounded_and_used() -> None:
    policy = ReplyingPolicy(lambda problem, before: answer("1"))
    await collect(TaskStream(TASKS, seed=0), rollouts(policy, concurrency=3), CollectOptions(tasks=4), seed=1)
    assert policy.most_running == 3


async def test_a_rollout_that_a_service_failed_is_dropped_and_counted_and_never_scored() -> None:
    def reply(problem: str, before: int) -> str | Exception:
        return PolicyUnavailable("down") if problem.endswith("0") or before == 0 else answer(number(problem))

    collection = await collect(
        TaskStream(TASKS, seed=0), rollouts(ReplyingPolicy(reply)), CollectOptions(tasks=5, siblings=3), seed=1
    )
    assert collection.dropped == {"rollouts": 4 + 3, "groups_small": 1}
    assert [len(group.trajectories) for group in collection.groups] == [2] * 4
    assert all(t.reward == 1.0 for t in collection.trajectories)


async def test_when_every_rollout_fails_the_reason_is_raised() -> None:
    policy = ReplyingPolicy(lambda problem, before: PolicyUnavailable("connection refused"))
    with pytest.raises(RolloutFailed, match=r"all 6 rollouts failed.*connection refused"):
        await collect(TaskStream(TASKS, seed=0), rollouts(policy), CollectOptions(tasks=2, siblings=3), seed=1)


async def test_groups_of_equal_rewards_are_dropped_and_drawn_again_within_the_bound() -> None:
    def reply(problem: str, before: int) -> str:
        return answer(number(problem) if problem.endswith("4") and before == 0 else "wrong")

    options = CollectOptions(tasks=2, siblings=2, dynamic_sampling=True, max_refills=1)
    stream = TaskStream(TASKS, seed=0)
    collection = await collect(stream, rollouts(ReplyingPolicy(reply)), options, seed=1)

    drawn = stream.position
    useful = [draw for draw in TaskStream(TASKS, seed=0).take(drawn) if draw.task.task_id == "t4"]
    assert len(collection.groups) == len(useful)
    assert collection.dropped["groups_equal"] == drawn - len(useful)
    assert len(collection.trajectories) == 2 * drawn
    assert 3 <= drawn <= 4


async def test_groups_of_equal_rewards_are_kept_unless_asked() -> None:
    policy = ReplyingPolicy(lambda problem, before: "no" + EOS)
    collection = await collect(
        TaskStream(TASKS, seed=0), rollouts(policy), CollectOptions(tasks=2, max_refills=3), seed=1
    )
    assert len(collection.groups) == 2
    assert {t.reward for t in collection.trajectories} == {0.0}


async def test_progress_counts_every_finished_rollout() -> None:
    seen: list[tuple[int, int]] = []
    policy = ReplyingPolicy(lambda problem, before: answer("1"))
    await collect(
        TaskStream(TASKS, seed=0),
        rollouts(policy),
        CollectOptions(tasks=2, siblings=2),
        seed=1,
        on_done=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

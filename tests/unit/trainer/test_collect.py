"""Groups out of many rollouts: order, seeds, what is dropped, and what is drawn again."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellar_client.errors import CellarError
from cellar_trainer.learning.model import control_tokens
from cellar_trainer.policy.protocol import Policy, PolicyUnavailable
from cellar_trainer.rewards.grader import Grade, GraderUnavailable
from cellar_trainer.rollouts import notebook as notebook_module
from cellar_trainer.rollouts.collect import CollectOptions, Rollouts, TaskStream, collect
from cellar_trainer.rollouts.rendering import Renderer, RenderingOptions
from cellar_trainer.rollouts.rollout import RolloutFailed, RolloutOptions
from cellar_trainer.types import Completion, Sampling, StopReason, Task, Trajectory
from tests.scripted import InProcessCellar, answer, call, scripted_completion
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

    async def grade(self, answer: str | None, expected: str) -> Grade:
        return Grade(answer == expected, "correct" if answer == expected else "wrong")


def rollouts(
    policy: Policy,
    concurrency: int = 8,
    *,
    cellar: InProcessCellar | None = None,
    grader: Same | None = None,
    deadline_s: float = 60.0,
) -> Rollouts:
    options = RolloutOptions(Sampling(100, stop_token_ids=STOPS, trigger_id=STOPS[0]), deadline_s=deadline_s)
    executor, judge = cast(Any, cellar or InProcessCellar()), cast(Any, grader or Same())
    return Rollouts(policy, executor, RENDERER, judge, options, concurrency)


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
    assert collection.dropped == {"rollouts_policy": 4 + 3, "groups_small": 1}
    assert [len(group.trajectories) for group in collection.groups] == [2] * 4
    assert all(t.reward == 1.0 for t in collection.trajectories)


@pytest.mark.parametrize("fault", ["executor", "grader"])
async def test_who_failed_a_rollout_is_told(fault: str) -> None:
    class Flaky(InProcessCellar):
        async def batch(self, operations: Any) -> list[Any]:
            self.failure = CellarError("no kernel") if len(self.opened) == 1 else None
            return await super().batch(operations)

    class Strict(Same):
        async def grade(self, answer: str | None, expected: str) -> Grade:
            if answer == "2":
                raise GraderUnavailable("gone")
            return await super().grade(answer, expected)

    def reply(problem: str, before: int) -> str:
        return call(r"print(r'\boxed{1}')") if fault == "executor" else answer(str(before))

    played = rollouts(ReplyingPolicy(reply), 1, cellar=Flaky(), grader=Strict())
    collection = await collect(TaskStream(TASKS[:1], seed=0), played, CollectOptions(tasks=1, siblings=4), seed=1)
    assert collection.dropped == {f"rollouts_{fault}": {"executor": 3, "grader": 1}[fault]} | (
        {"groups_small": 1} if fault == "executor" else {}
    )


async def test_a_trajectory_sampled_by_old_weights_is_dropped_and_its_siblings_are_not() -> None:
    class Restarted(ReplyingPolicy):
        async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
            completion = await super().generate(token_ids, sampling)
            version = 0 if len(self.asked) == 2 else 7
            return replace(completion, policy_versions=(version,) * len(completion.token_ids))

    played = rollouts(Restarted(lambda problem, before: answer("1")), concurrency=1)
    options = CollectOptions(tasks=1, siblings=4)
    collection = await collect(TaskStream(TASKS, seed=0), played, options, seed=1, oldest_version=6)
    assert collection.dropped == {"rollouts_stale": 1}
    assert [len(group.trajectories) for group in collection.groups] == [3]
    assert {t.policy_versions for t in collection.trajectories} == {(7, 7)}


async def test_when_every_rollout_fails_the_reason_is_raised() -> None:
    policy = ReplyingPolicy(lambda problem, before: PolicyUnavailable("connection refused"))
    with pytest.raises(RolloutFailed, match=r"all 6 rollouts failed.*connection refused"):
        await collect(TaskStream(TASKS, seed=0), rollouts(policy), CollectOptions(tasks=2, siblings=3), seed=1)


@pytest.mark.parametrize("many", [True, False])
async def test_what_nobody_expected_is_raised_as_it_is(many: bool) -> None:
    def reply(problem: str, before: int) -> Exception:
        return OSError(problem) if many or problem.endswith("0") else PolicyUnavailable("down")

    played = rollouts(ReplyingPolicy(reply))
    with pytest.raises(OSError, match="problem") as raised:
        await collect(TaskStream(TASKS, seed=0), played, CollectOptions(tasks=5, siblings=1), seed=1)
    assert isinstance(raised.value.__cause__, ExceptionGroup) == many, "what else was raised"
    with pytest.raises(OSError, match="problem"):
        await played.play([(task, 0) for task in TASKS])


async def test_several_kinds_of_errors_hide_none() -> None:
    def reply(problem: str, before: int) -> Exception:
        return OSError(problem) if problem.endswith("0") else KeyError(problem)

    with pytest.raises(ExceptionGroup) as raised:
        await collect(
            TaskStream(TASKS, seed=0), rollouts(ReplyingPolicy(reply)), CollectOptions(tasks=5, siblings=1), seed=1
        )
    assert {type(error) for error in raised.value.exceptions} == {OSError, KeyError}


async def test_an_outage_is_not_tried_out_on_every_refill() -> None:
    policy = ReplyingPolicy(lambda problem, before: PolicyUnavailable("connection refused"))
    options = CollectOptions(tasks=2, siblings=3, max_refills=1000)
    with pytest.raises(RolloutFailed, match="all 6 rollouts failed"):
        await collect(TaskStream(TASKS, seed=0), rollouts(policy), options, seed=1)


async def test_when_the_refills_are_used_up_there_are_fewer_groups_and_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = ReplyingPolicy(lambda problem, before: answer("wrong"))
    stream = TaskStream(TASKS, seed=0)
    options = CollectOptions(tasks=2, siblings=2, dynamic_sampling=True, max_refills=7)
    collection = await collect(stream, rollouts(policy), options, seed=1)
    assert (collection.groups, collection.dropped, stream.position) == ([], {"groups_equal": 9}, 9)
    assert len(collection.trajectories) == 18
    assert "0 groups of the 2 wanted: 9 tasks were played" in caplog.text


async def test_groups_are_told_apart_by_their_outcomes_not_by_the_shape_of_their_rewards() -> None:
    class Shaped(Rollouts):
        async def play_one(self, *args: Any, **options: Any) -> Trajectory | RolloutFailed:
            played = await super().play_one(*args, **options)
            assert isinstance(played, Trajectory)
            played.reward = len(played.token_ids) / 1000
            return played

    plain = rollouts(ReplyingPolicy(lambda problem, before: answer("wrong" * (before + 1))))
    shaped = Shaped(plain.policy, plain.cellar, RENDERER, plain.grader, plain.options, concurrency=4)
    options = CollectOptions(tasks=1, siblings=3, dynamic_sampling=True)
    collection = await collect(TaskStream(TASKS, seed=0), shaped, options, seed=1)
    assert len({t.reward for t in collection.trajectories}) == 3
    assert collection.dropped == {"groups_equal": 1}


async def test_the_next_task_starts_as_soon_as_a_group_is_of_no_use_and_waits_for_no_other() -> None:
    problems = [draw.task.problem for draw in TaskStream(TASKS, seed=0).take(3)]
    third_started = asyncio.Event()

    class FirstWaits(ReplyingPolicy):
        async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
            place = problems.index(RENDERER.text(token_ids))
            if place == 2:
                third_started.set()
            if place == 0:
                async with asyncio.timeout(5):
                    await third_started.wait()
            return await super().generate(token_ids, sampling)

    def reply(problem: str, before: int) -> str:
        return answer("wrong" if problem == problems[1] or before else number(problem))

    options = CollectOptions(tasks=2, siblings=2, dynamic_sampling=True, max_refills=1)
    collection = await collect(TaskStream(TASKS, seed=0), rollouts(FirstWaits(reply)), options, seed=1)
    assert [group.key.partition(":")[0] for group in collection.groups] == ["0", "2"]


async def test_a_group_that_has_lost_too_many_is_replaced_before_its_last_siblings_are_done() -> None:
    problems = [draw.task.problem for draw in TaskStream(TASKS, seed=0).take(2)]
    second_started = asyncio.Event()

    class FirstFails(ReplyingPolicy):
        async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
            before = len(self.asked)
            if RENDERER.text(token_ids) == problems[1]:
                second_started.set()
            completion = await super().generate(token_ids, sampling)
            if before == 2:
                async with asyncio.timeout(5):
                    await second_started.wait()
            return completion

    def reply(problem: str, before: int) -> str | Exception:
        return PolicyUnavailable("down") if problem == problems[0] and before == 1 else answer("1")

    options = CollectOptions(tasks=1, siblings=3, min_siblings=3, max_refills=1)
    collection = await collect(TaskStream(TASKS, seed=0), rollouts(FirstFails(reply)), options, seed=1)
    assert [group.key.partition(":")[0] for group in collection.groups] == ["1"]
    assert collection.dropped == {"rollouts_policy": 1, "groups_small": 1}
    assert len(collection.trajectories) == 5


@dataclass
class Chance:
    """A policy whose answers, faults and versions depend on its seeds alone, and whose pauses depend on `timing`."""

    timing: Random
    right: float

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        for _ in range(self.timing.randrange(12)):
            await asyncio.sleep(0)
        chance = Random(sampling.seed)
        if chance.random() < 0.15:
            raise PolicyUnavailable("down")
        text = answer(number(RENDERER.text(token_ids)) if chance.random() < self.right else "wrong")
        return scripted_completion(TOKENIZER, text, sampling, version=int(chance.random() < 0.9))

    async def close(self) -> None:
        pass


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.05, 0.3, 0.9]),
    st.builds(
        CollectOptions,
        tasks=st.integers(1, 4),
        siblings=st.integers(1, 4),
        min_siblings=st.integers(1, 3),
        dynamic_sampling=st.booleans(),
        max_refills=st.integers(0, 9),
    ),
)
@settings(max_examples=40, deadline=None)
def test_a_collection_is_the_first_groups_of_use_whatever_finishes_first(
    seed: int, right: float, options: CollectOptions
) -> None:
    def play(timing: int, concurrency: int) -> object:
        stream = TaskStream(TASKS, seed=seed)
        played = rollouts(Chance(Random(timing), right), concurrency)
        try:
            collection = asyncio.run(collect(stream, played, options, seed=seed, oldest_version=1))
        except RolloutFailed as failure:
            return str(failure), stream.position
        groups = [(g.key, [(t.answer, t.reward) for t in g.trajectories]) for g in collection.groups]
        everything = [(t.task.task_id, t.correct, t.token_ids) for t in collection.trajectories]
        unusable = collection.dropped["groups_small"] + collection.dropped["groups_equal"]
        assert stream.position == len(groups) + unusable == options.tasks + min(unusable, options.max_refills)
        return groups, everything, collection.dropped, collection.grades, stream.position

    one_by_one = play(timing=0, concurrency=1)
    assert play(timing=1, concurrency=3) == one_by_one
    assert play(timing=2, concurrency=99) == one_by_one


async def test_a_straggler_holds_a_batch_no_longer_than_its_deadline() -> None:
    class OneHangs(ReplyingPolicy):
        async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
            if len(self.asked) == 2:
                self.asked.append(("", None))
                await asyncio.Event().wait()
            return await super().generate(token_ids, sampling)

    played = rollouts(OneHangs(lambda problem, before: answer("1")), concurrency=2, deadline_s=0.5)
    async with asyncio.timeout(20):
        collection = await collect(TaskStream(TASKS, seed=0), played, CollectOptions(tasks=2, siblings=4), seed=1)
    stops = Counter(t.stop_reason for t in collection.trajectories)
    assert stops == {StopReason.ANSWERED: 7, StopReason.DEADLINE: 1}


async def test_a_session_that_cannot_be_deleted_takes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    all_are_stuck = asyncio.Barrier(4)

    class Stuck(InProcessCellar):
        async def delete_session(self, session_id: str) -> None:
            await all_are_stuck.wait()

    monkeypatch.setattr(notebook_module, "CLOSE_S", 5.0)
    played = rollouts(ReplyingPolicy(lambda problem, before: call(r"print(r'\boxed{1}')")), 1, cellar=Stuck())
    collection = await collect(TaskStream(TASKS, seed=0), played, CollectOptions(tasks=1, siblings=4), seed=1)
    assert len(collection.trajectories) == 4
    assert all_are_stuck.n_waiting == 0
    assert not all_are_stuck.broken


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

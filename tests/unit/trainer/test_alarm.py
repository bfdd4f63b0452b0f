"""Warnings that come when they should, once, and not otherwise."""

from collections import Counter
from collections.abc import Sequence

import pytest

from cellar_trainer.rewards.alarm import AlarmOptions, RewardAlarm
from cellar_trainer.rollouts.collect import Collection
from cellar_trainer.types import Task, Trajectory


def collection(outcomes: Sequence[bool], *, dropped: int = 0, **grades: int) -> Collection:
    trajectories = [Trajectory(Task("t", "", ""), correct=correct) for correct in outcomes]
    reasons = Counter({"rollouts_policy": dropped, "groups_equal": 100})
    return Collection(trajectories=trajectories, dropped=reasons, grades=Counter(grades))


@pytest.fixture
def alarm() -> RewardAlarm:
    return RewardAlarm(AlarmOptions(constant_steps=3, unread_share=0.25, dropped_share=0.25))


@pytest.mark.parametrize(
    ("outcome", "message"),
    [(False, "no answer was correct for 3 steps in a row (wrong 2)"), (True, "every answer was correct for 3 steps")],
)
def test_a_constant_outcome_is_said_every_so_many_steps(
    alarm: RewardAlarm, caplog: pytest.LogCaptureFixture, outcome: bool, message: str
) -> None:
    warned = []
    for _ in range(7):
        assert alarm.step(collection([outcome] * 2, wrong=2))["alarm/constant"] == 1.0
        warned.append(len(caplog.messages))
    assert warned == [0, 0, 1, 1, 1, 2, 2]
    assert message in caplog.messages[0]


@pytest.mark.parametrize("between", [[True, False], [True], []])
def test_another_outcome_starts_the_count_again(
    alarm: RewardAlarm, caplog: pytest.LogCaptureFixture, between: list[bool]
) -> None:
    for outcomes in ([False], [False], between, [False], [False]):
        alarm.step(collection(outcomes))
    assert caplog.messages == []
    alarm.step(collection([False]))
    assert len(caplog.messages) == 1


def test_nothing_that_varies_is_an_alarm(alarm: RewardAlarm, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(9):
        flags = alarm.step(collection([True, False], correct=1, wrong=2, unparsed=1, no_answer=9))
        assert flags == {"alarm/constant": 0.0, "alarm/unread": 0.0, "alarm/dropped": 0.0}
    assert caplog.messages == []


@pytest.mark.parametrize("grade", ["unparsed", "timeout"])
def test_answers_that_nobody_can_read_are_said_once(
    alarm: RewardAlarm, caplog: pytest.LogCaptureFixture, grade: str
) -> None:
    for _ in range(3):
        assert alarm.step(collection([True, False], wrong=2, **{grade: 1}))["alarm/unread"] == 1.0
    assert len(caplog.messages) == 1
    assert "33 % of the answers cannot be read" in caplog.messages[0]


def test_dropped_rollouts_are_said_and_said_again_after_they_had_stopped(
    alarm: RewardAlarm, caplog: pytest.LogCaptureFixture
) -> None:
    for dropped in (1, 1, 0, 1):
        assert alarm.step(collection([True, False], dropped=dropped))["alarm/dropped"] == dropped
    assert caplog.messages == ["33 % of the rollouts were dropped: the log above says why"] * 2


def test_a_step_without_any_trajectory_is_no_constant_reward(alarm: RewardAlarm) -> None:
    assert alarm.step(collection([], dropped=4)) == {"alarm/constant": 0.0, "alarm/unread": 0.0, "alarm/dropped": 1.0}

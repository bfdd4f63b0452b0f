"""Rewards by hand."""

import pytest

from cellar_trainer.rewards.shaping import RewardOptions, shaped_reward
from cellar_trainer.types import Segment, SegmentKind, StopReason, Task, Trajectory


def trajectory(length: int, correct: bool) -> Trajectory:
    segments = [Segment(SegmentKind.PROMPT, (0,)), Segment(SegmentKind.OBSERVATION, (0,) * (length - 1))]
    return Trajectory(Task("t", "", ""), segments, correct=correct)


@pytest.mark.parametrize(("correct", "reward"), [(True, 1.0), (False, 0.0)])
@pytest.mark.parametrize("length", [1, 100])
def test_by_default_the_outcome_is_the_reward(length: int, correct: bool, reward: float) -> None:
    assert shaped_reward(trajectory(length, correct), RewardOptions(), 100) == reward


def test_the_two_rewards_can_be_chosen() -> None:
    options = RewardOptions(correct=2.0, wrong=-1.0)
    assert [shaped_reward(trajectory(1, correct), options, 100) for correct in (True, False)] == [2.0, -1.0]


@pytest.mark.parametrize(("length", "loss"), [(1, 0.0), (60, 0.0), (61, 0.0125), (80, 0.25), (100, 0.5), (130, 0.5)])
def test_the_penalty_grows_over_the_buffer_and_no_further(length: int, loss: float) -> None:
    options = RewardOptions(overlong="penalty", overlong_buffer=40, overlong_penalty=0.5)
    assert shaped_reward(trajectory(length, True), options, 100) == pytest.approx(1.0 - loss)
    assert shaped_reward(trajectory(length, False), options, 100) == pytest.approx(-loss)


def test_only_the_mask_leaves_cut_trajectories_out_of_training() -> None:
    assert RewardOptions().masked_stop_reasons == {StopReason.MAX_TOKENS}
    assert RewardOptions(overlong="score").masked_stop_reasons == frozenset()
    assert RewardOptions(overlong="penalty").masked_stop_reasons == frozenset()

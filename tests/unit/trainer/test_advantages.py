from math import exp
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_trainer.learning.advantages import group_advantages, pairwise_advantages


def test_three_rewards_by_hand() -> None:
    # mean 1, unbiased standard deviation sqrt((1 + 0 + 1) / 2) = 1
    assert group_advantages([0.0, 1.0, 2.0], ["a"] * 3, epsilon=0.0) == [-1.0, 0.0, 1.0]
    assert group_advantages([0.0, 1.0, 2.0], ["a"] * 3, epsilon=1.0) == [-0.5, 0.0, 0.5]


def test_one_success_in_four_without_normalisation() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 0.0], ["a"] * 4, normalise=False) == [0.75, -0.25, -0.25, -0.25]


def test_groups_are_told_apart_by_key_whatever_their_order() -> None:
    assert group_advantages([0.0, 5.0, 2.0, 9.0], ["a", "b", "a", "b"], normalise=False) == [-1.0, -2.0, 1.0, 2.0]


@pytest.mark.parametrize("rewards", [[0.7], [0.1, 0.1, 0.1], [0.0, 0.0]])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_group_of_one_or_of_equals_gives_exactly_zero(rewards: list[float], normalise: bool) -> None:
    assert group_advantages(rewards, ["a"] * len(rewards), normalise=normalise) == [0.0] * len(rewards)


def test_every_reward_needs_a_key() -> None:
    with pytest.raises(ValueError, match="shorter"):
        group_advantages([1.0, 2.0], ["a"])


@given(st.lists(st.tuples(st.floats(-10, 10), st.sampled_from("abc"))))
def test_advantages_of_a_group_cancel(rows: list[tuple[float, str]]) -> None:
    keys = [key for _, key in rows]
    advantages = group_advantages([reward for reward, _ in rows], keys)

    for wanted in set(keys):
        assert sum(a for a, key in zip(advantages, keys, strict=True) if key == wanted) == pytest.approx(0, abs=1e-6)


def test_lampo_by_hand() -> None:
    # Scores log 3, 0, 0 at tau 1: sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4, sigmoid(0) = 1/2.
    rewards, scores = [1.0, 0.0, 0.5], [1.0986122886681098, 0.0, 0.0]

    counted = pairwise_advantages(rewards, ["a"] * 3, scores)
    weighted = pairwise_advantages(rewards, ["a"] * 3, scores, normalise="weights")

    # first  (3/4 * 1 + 3/4 * 1/2) / 2,  second  (1/4 * -1 + 1/2 * -1/2) / 2,  third  (1/4 * -1/2 + 1/2 * 1/2) / 2
    assert counted == pytest.approx([0.5625, -0.25, 0.0625])
    # the same sums, over 3/4 + 3/4, 1/4 + 1/2 and 1/4 + 1/2
    assert weighted == pytest.approx([0.75, -2 / 3, 1 / 6])


def test_lampos_tau_divides_the_scores() -> None:
    keys, rewards = ["a"] * 2, [1.0, 0.0]
    assert pairwise_advantages(rewards, keys, [4.0, 2.0], tau=2.0) == pytest.approx(
        [1 / (1 + exp(-1)), -1 / (1 + exp(1))]
    )


def test_lampo_tells_groups_apart() -> None:
    advantages = pairwise_advantages([0.0, 5.0, 2.0, 9.0], ["a", ("b", 1), "a", ("b", 1)], [0.0] * 4)
    assert advantages == [-1.0, -2.0, 1.0, 2.0]


@pytest.mark.parametrize("normalise", ["count", "weights"])
def test_lampo_of_scores_far_apart_is_finite(normalise: Literal["count", "weights"]) -> None:
    advantages = pairwise_advantages([1.0, 0.0, 0.0], ["a"] * 3, [-9e5, 0.0, 9e5], normalise=normalise)
    # The weights are 0 and 0 of the first, 1 and 0 of the second, 1 and 1 of the third; in the first row the second of
    # the two is the smaller by far.
    assert advantages == ([0.0, -0.5, -0.5] if normalise == "count" else [1.0, -1.0, -0.5])


@given(st.lists(st.tuples(st.floats(-10, 10), st.sampled_from("abc"), st.floats(-50, 50))))
def test_lampo_at_a_high_temperature_is_half_the_lead_over_the_others(rows: list[tuple[float, str, float]]) -> None:
    rewards, keys, scores = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    expected = []
    for reward, key in zip(rewards, keys, strict=True):
        group = [other for other, other_key in zip(rewards, keys, strict=True) if other_key == key]
        size, mean = len(group), sum(group) / len(group)
        expected.append((reward - mean) / 2 * size / (size - 1) if size > 1 else 0.0)

    assert pairwise_advantages(rewards, keys, scores, tau=1e12) == pytest.approx(expected, abs=1e-8)


@given(
    st.floats(-10, 10), st.lists(st.floats(-500, 500), min_size=1, max_size=6), st.sampled_from(["count", "weights"])
)
def test_lampo_of_equal_rewards_is_exactly_zero(
    reward: float, scores: list[float], normalise: Literal["count", "weights"]
) -> None:
    count = len(scores)
    assert pairwise_advantages([reward] * count, [0] * count, scores, normalise=normalise) == [0.0] * count

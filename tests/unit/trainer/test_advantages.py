import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_trainer.advantages import group_advantages


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

"""Rewards of compared trajectories into advantages."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, stdev


def group_advantages(
    rewards_N: Sequence[float], group_keys_N: Sequence[str], *, normalise: bool = True, epsilon: float = 1e-6
) -> list[float]:
    """How much better each trajectory did than its group: reward less the group's mean, over its standard deviation.

    The standard deviation is the unbiased one, and `epsilon` is added to it, as in GRPO; `normalise=False` leaves the
    division out, as in Dr. GRPO. A group of one, or of equal rewards, gives exactly 0.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for reward, key in zip(rewards_N, group_keys_N, strict=True):
        groups[key].append(reward)
    baselines = {key: _mean_and_scale(rewards, normalise, epsilon) for key, rewards in groups.items()}
    members = ((reward, *baselines[key]) for reward, key in zip(rewards_N, group_keys_N, strict=True))
    return [(reward - mean) / scale for reward, mean, scale in members]


def _mean_and_scale(rewards: list[float], normalise: bool, epsilon: float) -> tuple[float, float]:
    if min(rewards) == max(rewards):
        return rewards[0], 1.0  # the mean of equal floats may differ from them in the last bit
    return fmean(rewards), stdev(rewards) + epsilon if normalise else 1.0

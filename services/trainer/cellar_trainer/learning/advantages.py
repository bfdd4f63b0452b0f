"""Rewards of compared trajectories into advantages."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from math import exp, log1p
from statistics import fmean, stdev
from typing import Literal


def group_advantages(
    rewards_N: Sequence[float], group_keys_N: Sequence[Hashable], *, normalise: bool = True, epsilon: float = 1e-6
) -> list[float]:
    """How much better each trajectory did than its group: reward less the group's mean, over its standard deviation.

    The standard deviation is the unbiased one, and `epsilon` is added to it, as in GRPO; `normalise=False` leaves the
    division out, as in Dr. GRPO. A group of one, or of equal rewards, gives exactly 0.
    """
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for reward, key in zip(rewards_N, group_keys_N, strict=True):
        groups[key].append(reward)
    baselines = {key: _mean_and_scale(rewards, normalise, epsilon) for key, rewards in groups.items()}
    members = ((reward, *baselines[key]) for reward, key in zip(rewards_N, group_keys_N, strict=True))
    return [(reward - mean) / scale for reward, mean, scale in members]


def pairwise_advantages(
    rewards_N: Sequence[float],
    group_keys_N: Sequence[Hashable],
    scores_N: Sequence[float],
    *,
    tau: float = 1.0,
    normalise: Literal["count", "weights"] = "count",
) -> list[float]:
    """LamPO (arXiv 2605.21235): each trajectory's lead in reward over every other of its group, weighted.

    The weight is sigmoid((s_i - s_j) / tau), so that who was more probable than the other counts more. A score s is the
    log-probability of a trajectory's sampled tokens under the policy that sampled them. The sum over the others is
    divided by their number or by the sum of the weights. A group of one, or of equal rewards, gives exactly 0.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, (key, _, _) in enumerate(zip(group_keys_N, rewards_N, scores_N, strict=True)):
        groups[key].append(row)
    advantages = [0.0] * len(rewards_N)
    for rows in groups.values():
        for row in rows:
            others = [other for other in rows if other != row]
            leads = [rewards_N[row] - rewards_N[other] for other in others]
            log_weights = [_log_sigmoid((scores_N[row] - scores_N[other]) / tau) for other in others]
            advantages[row] = _weighted_mean(leads, log_weights, normalise)
    return advantages


def _mean_and_scale(rewards: list[float], normalise: bool, epsilon: float) -> tuple[float, float]:
    if min(rewards) == max(rewards):
        return rewards[0], 1.0  # the mean of equal floats may differ from them in the last bit
    return fmean(rewards), stdev(rewards) + epsilon if normalise else 1.0


def _weighted_mean(values: list[float], log_weights: list[float], normalise: Literal["count", "weights"]) -> float:
    if not values:
        return 0.0
    if normalise == "count":
        return sum(exp(w) * value for w, value in zip(log_weights, values, strict=True)) / len(values)
    peak = max(log_weights)  # all weights may be too small for a float, but not their ratios
    weights = [exp(w - peak) for w in log_weights]
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def _log_sigmoid(x: float) -> float:
    return min(x, 0.0) - log1p(exp(-abs(x)))

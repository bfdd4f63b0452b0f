"""What there is to learn from a collection: advantages within groups, less the trajectories that are masked."""

from collections.abc import Sequence, Set
from functools import cache

from transformers import PreTrainedTokenizerBase

from cellar_trainer.learning.advantages import group_advantages, pairwise_advantages
from cellar_trainer.learning.fences import near_fences
from cellar_trainer.learning.objectives import ObjectiveOptions
from cellar_trainer.learning.packing import Example
from cellar_trainer.types import Group, StopReason, Trajectory


def to_examples(
    groups: Sequence[Group],
    tokenizer: PreTrainedTokenizerBase,
    objective: ObjectiveOptions,
    *,
    masked: Set[StopReason] = frozenset(),
) -> list[Example]:
    """One example per trajectory, in their order. One that stopped for a `masked` reason only counts in its group."""
    members = [(group.key, trajectory) for group in groups for trajectory in group.trajectories]
    text_of = cache(lambda token_id: str(tokenizer.decode([token_id])))
    return [
        Example(
            trajectory, advantage, near_fence=near_fences(trajectory, text_of) if objective.mask == "fence" else None
        )
        for (_, trajectory), advantage in zip(members, _advantages(members, objective), strict=True)
        if trajectory.stop_reason not in masked
    ]


def _advantages(members: Sequence[tuple[str, Trajectory]], objective: ObjectiveOptions) -> list[float]:
    keys = [key for key, _ in members]
    rewards = [trajectory.reward or 0.0 for _, trajectory in members]
    if objective.advantage != "pairwise":
        return group_advantages(rewards, keys, normalise=objective.advantage == "standardised")
    scores = [sum(trajectory.logprobs) for _, trajectory in members]
    return pairwise_advantages(rewards, keys, scores, tau=objective.lampo_tau, normalise=objective.lampo_normalise)

"""Outcomes into rewards. By default the outcome is the reward."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from cellar_trainer.types import StopReason, Trajectory


@dataclass(frozen=True, slots=True)
class RewardOptions:
    correct: float = 1.0
    """Reward of a correct answer."""
    wrong: float = 0.0
    """Reward of everything else that finished."""
    overlong: Literal["score", "mask", "penalty"] = "mask"
    """What becomes of a trajectory that ran out of tokens. `score`: its outcome counts like any other. `mask`: it
    counts in its group's mean but is not trained on, as in the reference, which calls it a void turn. `penalty`: long
    trajectories lose reward before they are cut (DAPO's soft overlong punishment, arXiv 2503.14476, eq. 13)."""
    overlong_buffer: Annotated[int, Field(ge=1)] = 4096
    """With `penalty`: the loss grows linearly over so many tokens before `rollout.max_context_tokens`."""
    overlong_penalty: Annotated[float, Field(ge=0)] = 1.0
    """With `penalty`: what a trajectory of full length loses."""

    @property
    def masked_stop_reasons(self) -> frozenset[StopReason]:
        """Whose trajectories are not trained on, beside those of `train.masked_stop_reasons`."""
        return frozenset({StopReason.MAX_TOKENS}) if self.overlong == "mask" else frozenset()


def shaped_reward(trajectory: Trajectory, options: RewardOptions, max_context_tokens: int) -> float:
    """The reward of a graded trajectory. Its length is that of its whole context, observations included."""
    reward = options.correct if trajectory.correct else options.wrong
    if options.overlong != "penalty":
        return reward
    excess = len(trajectory.token_ids) - (max_context_tokens - options.overlong_buffer)
    return reward - options.overlong_penalty * min(max(excess / options.overlong_buffer, 0.0), 1.0)

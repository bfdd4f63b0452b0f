"""Says when training goes on but cannot learn: always the same outcome, answers nobody can read, rollouts that fail."""

import logging
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from cellar_trainer.rollouts.collect import Collection
from cellar_trainer.types import Metrics

_log = logging.getLogger(__name__)

ALL_CORRECT = "every answer was correct for %d steps in a row (%s): these tasks have nothing left to teach"
NONE_CORRECT = (
    "no answer was correct for %d steps in a row (%s): is it the grader, the form of the answers, or the executor? "
    "Look at trajectories.jsonl"
)
UNREAD = (
    "%.0f %% of the answers cannot be read, or not be compared in time (%s): does the model answer as the prompt asks, "
    "and are the answers of the tasks mathematics?"
)
DROPPED = "%.0f %% of the rollouts were dropped: the log above says why"

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class AlarmOptions:
    constant_steps: Annotated[int, Field(ge=1)] = 5
    """Warn when in so many steps in a row all answers were correct, or none was."""
    unread_share: Share = 0.2
    """Warn when more of a step's answers than this could not be parsed, or not be compared in time."""
    dropped_share: Share = 0.2
    """Warn when more of a step's rollouts than this were dropped."""


class RewardAlarm:
    """Told the collection of each step, it logs a warning where `AlarmOptions` ask for one.

    A reward that is constant is most often a grader, a prompt or an executor that does not work, and looks like a
    policy that does not learn.
    """

    def __init__(self, options: AlarmOptions) -> None:
        self._options = options
        self._last: bool | None = None
        """The outcome that all trajectories of the last step had in common."""
        self._streak = 0
        """Steps since it was another."""
        self._unread = self._dropped = False

    def step(self, collection: Collection) -> Metrics:
        """What is wrong with this step, each 0 or 1: `alarm/constant`, `alarm/unread`, `alarm/dropped`."""
        flags = {
            "constant": self._is_constant(collection),
            "unread": self._is_unread(collection),
            "dropped": self._is_dropped(collection),
        }
        return {f"alarm/{name}": float(flag) for name, flag in flags.items()}

    def _is_constant(self, collection: Collection) -> bool:
        outcomes = {bool(trajectory.correct) for trajectory in collection.trajectories}
        outcome = outcomes.pop() if len(outcomes) == 1 else None
        self._streak = self._streak + 1 if outcome == self._last else 1
        self._last = outcome
        if outcome is not None and self._streak % self._options.constant_steps == 0:
            _log.warning(ALL_CORRECT if outcome else NONE_CORRECT, self._streak, _grades(collection))
        return outcome is not None

    def _is_unread(self, collection: Collection) -> bool:
        share, before = unread_share(collection), self._unread
        self._unread = share > self._options.unread_share
        if self._unread and not before:
            _log.warning(UNREAD, 100 * share, _grades(collection))
        return self._unread

    def _is_dropped(self, collection: Collection) -> bool:
        share, before = dropped_share(collection), self._dropped
        self._dropped = share > self._options.dropped_share
        if self._dropped and not before:
            _log.warning(DROPPED, 100 * share)
        return self._dropped


def unread_share(collection: Collection) -> float:
    """Of the answers that were given."""
    given = sum(count for grade, count in collection.grades.items() if grade != "no_answer")
    return (collection.grades["unparsed"] + collection.grades["timeout"]) / given if given else 0.0


def dropped_share(collection: Collection) -> float:
    """Of the rollouts that were started."""
    dropped = sum(count for reason, count in collection.dropped.items() if reason.startswith("rollouts"))
    started = dropped + len(collection.trajectories)
    return dropped / started if started else 0.0


def _grades(collection: Collection) -> str:
    return ", ".join(f"{grade} {count}" for grade, count in collection.grades.most_common())

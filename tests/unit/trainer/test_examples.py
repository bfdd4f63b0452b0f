"""From graded groups to what is learned from."""

import pytest

from cellar_trainer.learning.examples import to_examples
from cellar_trainer.learning.objectives import ObjectiveOptions
from cellar_trainer.types import Group, Segment, SegmentKind, StopReason, Task, Trajectory
from tests.tiny_model import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TASK = Task("t", "1+1", "2")


def trajectory(reward: float, stop_reason: StopReason) -> Trajectory:
    segments = [
        Segment(SegmentKind.PROMPT, (1, 2)),
        Segment(SegmentKind.SAMPLED, (3,), (-1.0,), (-2.0,), (0,)),
    ]
    return Trajectory(TASK, segments, stop_reason=stop_reason, reward=reward)


def test_masked_trajectories_count_in_their_group_but_are_not_learned_from() -> None:
    siblings = [trajectory(1.0, StopReason.ANSWERED), trajectory(0.0, StopReason.VOID)]
    objective = ObjectiveOptions(advantage="centred")
    (example,) = to_examples([Group("g", siblings)], TOKENIZER, objective, masked={StopReason.VOID})
    assert (example.trajectory, example.advantage) == (siblings[0], 0.5)


def test_there_is_nothing_to_learn_from_no_groups() -> None:
    assert to_examples([], TOKENIZER, ObjectiveOptions()) == []


@pytest.mark.parametrize(
    ("advantage", "expected"),
    # one success in two, log-probabilities of -1 and -3: mean 1/2, deviation sqrt(1/2), weights sigmoid(2) and its rest
    [("centred", 0.5), ("standardised", 0.5**0.5), ("pairwise", 0.880797)],
)
def test_the_objective_says_how_advantages_are_made(advantage: str, expected: float) -> None:
    better, worse = trajectory(1.0, StopReason.ANSWERED), trajectory(0.0, StopReason.ANSWERED)
    worse.segments[-1] = Segment(SegmentKind.SAMPLED, (3,), (-3.0,), (-2.0,), (0,))
    objective = ObjectiveOptions.model_validate({"advantage": advantage})

    examples = to_examples([Group("g", [better, worse])], TOKENIZER, objective)

    assert [example.advantage for example in examples] == pytest.approx(
        [expected, -expected if advantage != "pairwise" else -0.119203], rel=1e-5
    )


def test_fences_are_looked_for_where_the_mask_asks_for_them() -> None:
    ids = tuple(TOKENIZER.encode("a```b"))
    zeros = (0.0,) * len(ids)
    played = trajectory(1.0, StopReason.ANSWERED)
    played.segments[-1] = Segment(SegmentKind.SAMPLED, ids, zeros, zeros, (0,) * len(ids))
    for mask, expected in (("fence", [0, 0, 1, 0, 0, 0, 1]), ("response", None)):
        objective = ObjectiveOptions.model_validate({"mask": mask})
        (example,) = to_examples([Group("g", [played])], TOKENIZER, objective)
        assert example.near_fence == expected

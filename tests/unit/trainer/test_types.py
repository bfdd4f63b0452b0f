import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_trainer.types import Segment, SegmentKind, Task, Trajectory

TASK = Task("t", "1+1", "2")


def prompt(*token_ids: int) -> Segment:
    return Segment(SegmentKind.PROMPT, token_ids)


def observation(*token_ids: int) -> Segment:
    return Segment(SegmentKind.OBSERVATION, token_ids)


def sampled(*token_ids: int, version: int = 0) -> Segment:
    """Log-probabilities that tell which token they belong to."""
    return Segment(
        SegmentKind.SAMPLED,
        token_ids,
        logprobs=tuple(-float(t) for t in token_ids),
        trigger_logprobs=tuple(-t / 2 for t in token_ids),
        policy_versions=(version,) * len(token_ids),
    )


def test_a_trajectory_is_its_segments_end_to_end() -> None:
    trajectory = Trajectory(TASK, [prompt(1, 2), sampled(3, 4, version=5), observation(6), sampled(7, version=8)])

    assert trajectory.token_ids == [1, 2, 3, 4, 6, 7]
    assert trajectory.loss_mask == [0, 0, 1, 1, 0, 1]
    assert trajectory.logprobs == [0.0, 0.0, -3.0, -4.0, 0.0, -7.0]
    assert trajectory.trigger_logprobs == [0.0, 0.0, -1.5, -2.0, 0.0, -3.5]
    assert trajectory.sampled_count == 3
    assert trajectory.policy_versions == (5, 8)


def test_a_trajectory_without_sampled_tokens_has_no_policy_version() -> None:
    assert Trajectory(TASK, [prompt(1)]).policy_versions is None


segments = st.lists(
    st.builds(
        lambda make, ids: make(*ids),
        st.sampled_from([prompt, observation, sampled]),
        st.lists(st.integers(0, 99), max_size=5),
    )
)


@given(segments)
def test_per_token_values_never_disagree_with_the_tokens_in_length(parts: list[Segment]) -> None:
    trajectory = Trajectory(TASK, parts)

    length = len(trajectory.token_ids)
    assert [len(trajectory.loss_mask), len(trajectory.logprobs), len(trajectory.trigger_logprobs)] == [length] * 3
    assert sum(trajectory.loss_mask) == trajectory.sampled_count


@pytest.mark.parametrize("name", ["logprobs", "trigger_logprobs", "policy_versions"])
@pytest.mark.parametrize("length", [1, 3])
def test_a_sampled_segment_needs_every_value_for_every_token(name: str, length: int) -> None:
    values: dict[str, tuple[int, ...]] = {"logprobs": (0, 0), "trigger_logprobs": (0, 0), "policy_versions": (0, 0)}

    with pytest.raises(ValueError, match=name):
        Segment(SegmentKind.SAMPLED, (1, 2), **{**values, name: (0,) * length})


@pytest.mark.parametrize("kind", [SegmentKind.PROMPT, SegmentKind.OBSERVATION])
def test_only_sampled_tokens_have_log_probabilities(kind: SegmentKind) -> None:
    with pytest.raises(ValueError, match="logprobs"):
        Segment(kind, (1,), logprobs=(-1.0,))

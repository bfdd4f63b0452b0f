import pytest

from cellar_trainer.learning.fences import near_fences
from cellar_trainer.types import Segment, SegmentKind, Task, Trajectory


def flagged(*turns: tuple[SegmentKind, list[str]]) -> list[str]:
    """The texts of the tokens that are flagged."""
    texts = [text for _, tokens in turns for text in tokens]
    ids = iter(range(len(texts)))
    segments = []
    for kind, tokens in turns:
        token_ids = tuple(next(ids) for _ in tokens)
        values = (0.0,) * len(tokens) if kind is SegmentKind.SAMPLED else ()
        segments.append(Segment(kind, token_ids, values, values, tuple(map(int, values))))
    flags = near_fences(Trajectory(Task("t", "p", "a"), segments), texts.__getitem__)
    assert len(flags) == len(texts)
    return [text for text, flag in zip(texts, flags, strict=True) if flag]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["so\n", "```", "python", "\n", "x=1", "\n", "```", "<tool_call>"], ["so\n", "python", "\n", "<tool_call>"]),
        (["a", "`", "`", "`", "b", "c"], ["a", "b"]),  # a fence of three tokens
        (["a", "\n```py", "\n", "1", "\n", "```\n\n", "b"], ["a", "\n", "\n", "b"]),  # tokens that hold more than it
        (["a", "``", "b"], []),
        (["```", "a"], ["a"]),
        (["a", "```"], ["a"]),
        (["a", "", "```", "", "b"], ["", ""]),  # a token without text is a neighbour like any other
        ([], []),
    ],
)
def test_the_neighbours_of_fences_by_hand(tokens: list[str], expected: list[str]) -> None:
    assert flagged((SegmentKind.SAMPLED, tokens)) == expected


def test_only_what_was_sampled_counts_and_a_fence_ends_with_its_segment() -> None:
    turns = [
        (SegmentKind.PROMPT, ["p", "```", "p"]),
        (SegmentKind.SAMPLED, ["s", "``"]),
        (SegmentKind.OBSERVATION, ["`", "o", "```", "o"]),
        (SegmentKind.SAMPLED, ["first", "second", "```"]),
    ]
    assert flagged(*turns) == ["second"]

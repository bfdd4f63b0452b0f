"""Which sampled tokens stand next to a code fence: where a block has ended, asking for a run is a choice."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate

from cellar_trainer.types import Segment, SegmentKind, Trajectory

_FENCE = re.compile("`{3,}")


def near_fences(trajectory: Trajectory, text_of: Callable[[int], str]) -> list[int]:
    """1 for each sampled token that ends right before a fence or begins right after one; an entry per token.

    `text_of` decodes one token. A character that is spread over tokens comes out wrong, but never as a backtick. A
    token that holds a part of the fence is the fence. What the policy did not sample is never flagged.
    """
    return [flag for segment in trajectory.segments for flag in _flags(segment, text_of)]


def _flags(segment: Segment, text_of: Callable[[int], str]) -> list[int]:
    flags = [0] * len(segment.token_ids)
    if segment.kind is SegmentKind.SAMPLED:
        for first, last in _fences([text_of(token_id) for token_id in segment.token_ids]):
            for neighbour in (first - 1, last + 1):
                if 0 <= neighbour < len(flags):
                    flags[neighbour] = 1
    return flags


def _fences(texts: list[str]) -> Iterator[tuple[int, int]]:
    """First and last token of each fence."""
    ends = list(accumulate(map(len, texts)))
    for fence in _FENCE.finditer("".join(texts)):
        yield bisect_right(ends, fence.start()), bisect_right(ends, fence.end() - 1)

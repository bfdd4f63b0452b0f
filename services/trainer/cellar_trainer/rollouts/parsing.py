r"""What a sampled turn says: its code blocks, its answer, and whether it was cut up for show. Pure, text in, value out.

The semantics are those of IH-GRPO's reference code, with these departures: the answer must stand in the model's own
words, not inside a block; when the last `\boxed{` is not closed, the last closed one counts, and one that is never
closed is no answer; "```pycon" or "```python3" does not open a Python block; and a block that is one bare expression
adds something (the reference takes it for a `print`, so that deferring `x = 2`, then `x + 1`, would not count).
"""

import re
from dataclasses import dataclass

_BLOCK = re.compile(r"```(?:python|py)(?=\s)(.*?)```", re.DOTALL)
_BRACE = re.compile(r"\\?\\boxed\{|\\.|[{}]", re.DOTALL)
_ONLY_SHOWS = re.compile(r"(?:print|display|pprint(?:\.pprint)?)\(")


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    blocks: tuple[str, ...]
    """Code of each closed Python fence, in order, without the white space around it."""
    answer: str | None
    r"""Content of the last `\boxed{...}` after the last block; None when there is none."""
    trivial_split: bool
    """The blocks are one block cut up, or repeat each other: deferral that should not be counted as such."""


def parse_turn(text: str) -> ParsedTurn:
    """Read one sampled turn, which may end with the text of the trigger."""
    fences = list(_BLOCK.finditer(text))
    blocks = tuple(fence[1].strip() for fence in fences)
    gaps = [text[left.end() : right.start()] for left, right in zip(fences, fences[1:], strict=False)]
    after_blocks = text[fences[-1].end() :] if fences else text
    return ParsedTurn(blocks, boxed_answer(after_blocks), _is_trivial_split(blocks, gaps))


def boxed_answer(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` whose braces balance; `\{` and `\}` are not braces."""
    open_braces: list[tuple[bool, int]] = []  # (is it \boxed's, where its content starts)
    answer_start, answer = -1, None
    for match in _BRACE.finditer(text):
        if match[0].endswith("{") and match[0] != r"\{":
            open_braces.append((match[0] != "{", match.end()))
        elif match[0] == "}" and open_braces:
            is_boxed, start = open_braces.pop()
            if is_boxed and start > answer_start:
                answer_start, answer = start, text[start : match.start()].strip()
    return answer


def _is_trivial_split(blocks: tuple[str, ...], gaps: list[str]) -> bool:
    if len(blocks) < 2:
        return False
    if not all(blocks) or any(not gap.strip() for gap in gaps):
        return True
    logic = [_logic_lines(block) for block in blocks]
    return any(_adds_nothing(lines, set().union(*logic[:i])) for i, lines in enumerate(logic) if i > 0)


def _adds_nothing(lines: set[str], earlier: set[str]) -> bool:
    """A block after others that only prints, repeats some of their lines, or repeats all of them."""
    return bool(earlier) and (lines <= earlier or lines >= earlier)


def _logic_lines(block: str) -> set[str]:
    """Without comments, and without white space anywhere."""
    lines = ("".join(line.partition("#")[0].split()) for line in block.splitlines())
    return {line for line in lines if line and not _ONLY_SHOWS.match(line)}

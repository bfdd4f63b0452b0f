"""The process in which answers are compared: its own, since a comparison may hang or eat memory. Run by `rewards`.

One JSON line in, `[answer, expected]`, one JSON line out, the outcome. Imports nothing of ours.
"""

import json
import logging
import os
import re
import resource
import signal
import sys
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

_MEMORY_BYTES = 2**30
_GAP = r"(?:[\s$~]|\\[ ,;:]|\\q?quad)+"
_SIDE_BY_SIDE = re.compile(rf"(?<![\^_\d.])(?<!frac)(?<!frac )\d+(?:\.\d+)?{_GAP}\.?\d")
"""Two bare numbers; those of `\\frac 1 2` and `\\log_2 8` have something that joins them."""
_WORD = re.compile(r"\\(?:text\w*|math(?:rm|bf|it)|mbox)\s*\{\s*([A-Za-z][A-Za-z ]+?)[\s.]*\}|([A-Za-z]{3,})")
"""A word, or several, in a command for text; bare ones of two letters are products or segments."""
_EXTRACTION = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]


def main(give_up_s: int) -> None:
    """Answer until stdin ends. A comparison that lasts `give_up_s` ends the process, even if its parent is gone."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable()  # what cannot be parsed is counted by the parent, not logged
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # parsers print to stdout at times
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        signal.alarm(give_up_s)
        replies.write(json.dumps(compare(*json.loads(line))) + "\n")
        signal.alarm(0)
        replies.flush()


def compare(answer: str, expected: str) -> str:
    if (word := _word(expected)) is not None:  # math-verify takes "evil" and "live" for the same product of letters
        return "correct" if word == (_word(answer) or answer.strip().casefold()) else "wrong"
    gold, target = _parse(expected), _parse(answer)
    if verify(gold, target, timeout_seconds=None):
        return "correct"
    return "wrong" if _understood(gold) and _understood(target) else "unparsed"


def _word(text: str) -> str | None:
    """What `text` says, when it is words and no mathematics."""
    match = _WORD.fullmatch(text.strip(" $.\n\t"))
    return (match[1] or match[2]).casefold() if match else None


def _parse(text: str) -> list[Any]:
    """The readings of a text, the text itself among them."""
    if _SIDE_BY_SIDE.search(text):  # math-verify takes "1 2" for a mixed number, which is 3
        return [text.strip()]
    return list(parse("\\boxed{" + text + "}", _EXTRACTION, parsing_timeout=None))


def _understood(parsed: list[Any]) -> bool:
    return any(not isinstance(reading, str) for reading in parsed)


if __name__ == "__main__":
    main(int(sys.argv[1]))

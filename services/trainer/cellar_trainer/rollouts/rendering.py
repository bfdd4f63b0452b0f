"""Text into token ids at the two places where text enters a trajectory: the prompt, and the observation of a run.

What the model sampled is never encoded again; what a cell printed is encoded so that it cannot become a control token.

Prompt and observation have the form of IH-GRPO's reference code; the prompt says in words of its own what the
reference's says. Departures: white space at the end of the output is left out; the limit on an observation's tokens
cuts the output, never the frame around it; a run that was out of memory or killed is not called a timeout; and a
warning does not hide a result (`warnings_hide_output`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from cellar_client.schemas import Run
from cellar_trainer.types import Task

DEFAULT_PROMPT = r"""Solve the problem below. You may compute with a Python notebook while you think.

- Write code in ```python blocks. They share one notebook: what one block defines, every later block can use.
- A finished block is only put in a queue. Nothing runs until you write <tool_call> right after a block; then all queued
  blocks run in order, and you are shown what they printed.
- As long as you can go on without knowing the values, go on: name what a block will have computed, reason with the
  name, and write the next block. Ask for a run only when what you do next depends on a value.
- A run shows only what is printed, or what the last line of the last block evaluates to. Never make up a result.
- Do not cut one computation into several blocks, and do not repeat code that has been queued already.
- When you know the answer, end with \boxed{answer}.

Example
Problem: A box holds 17 rows of 23 nails, and 46 more lie beside it. Find the largest prime factor of their number.
The number of nails first.
```python
nails = 17 * 23 + 46
```
Whatever `nails` is, its prime factors come next, and I need the largest of them.
```python
from sympy import primefactors
max(primefactors(nails))
```<tool_call>
Code execution result: 23
</tool_call>
The largest prime factor is \boxed{23}.

Problem: {problem}
"""

_ENDINGS = {
    "timeout": "interpreter timeout",
    "oom": "interpreter out of memory",
    "killed": "interpreter killed",
    "lost": "interpreter lost",
}


class Tokenizer(Protocol):
    """What is used of a `transformers` tokenizer."""

    @property
    def added_tokens_decoder(self) -> dict[int, Any]: ...
    def encode(self, text: str, *, add_special_tokens: bool = ...) -> Any: ...
    def decode(self, token_ids: list[int], skip_special_tokens: bool = ...) -> Any: ...
    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class RenderingOptions:
    prompt: str = DEFAULT_PROMPT
    """`{problem}` is replaced by the problem; any other brace stands for itself."""
    chat_template: bool = True
    """Wrap the prompt as the user's message of the tokenizer's chat template; else encode it as it is."""
    enable_thinking: bool = False
    """Passed to the chat template, for models that know it."""
    observation_chars: int = 512
    """Longest output shown: more keeps its head and its tail, with a notice between them."""
    observation_notice: str = "\n..._This content has been truncated to stay below {limit} characters_...\n"
    """`{limit}` is replaced by `observation_chars`."""
    output_of_failed: bool = False
    """Show what a failing run printed, before the line that says how it failed; the reference shows that line alone."""
    warnings_hide_output: bool = False
    """Show the last line that a run wrote to stderr, if any, and nothing else, as the reference does. Otherwise stderr
    is never shown."""
    observation_tokens: int = 256
    """Longest observation; the output is cut at its end, the frame around it never."""
    observation: str = "\nCode execution result: {output}\n</tool_call>\n"
    """What a run is answered with; `{output}` is replaced by what it shows."""


class Renderer:
    """Encodes prompts and observations for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, options: RenderingOptions | None = None) -> None:
        self._tokenizer = tokenizer
        self._options = options or RenderingOptions()
        control = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special or len(t.content) > 1}
        self._control_ids = frozenset(control)
        self._control_text = re.compile("(?=" + "|".join(map(re.escape, control.values())) + ")" if control else "(?!)")

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        text = self._options.prompt.replace("{problem}", task.problem)
        if not self._options.chat_template:
            return tuple(self._tokenizer.encode(text))
        chat = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=self._options.enable_thinking,
        )
        return tuple(self._encode(chat))

    def observation_text(self, run: Run) -> str:
        """The whole observation, frame included, before it is cut to `observation_tokens`."""
        return self._options.observation.replace("{output}", self._shown(run))

    def observation_ids(self, run: Run) -> tuple[int, ...]:
        before, _, after = self._options.observation.partition("{output}")
        head, tail = self._encode(before), self._encode(after)
        room = max(0, self._options.observation_tokens - len(head) - len(tail))
        return (*head, *self._encode_printed(self._shown(run))[:room], *tail)

    def text(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _shown(self, run: Run) -> str:
        printed: tuple[str | None, ...] = (run.stdout.rstrip(), run.result)
        ending = _ending(run)
        if self._options.warnings_hide_output and not ending and run.stderr.strip():
            printed, ending = (), run.stderr.rstrip().splitlines()[-1]
        elif ending and not self._options.output_of_failed:
            printed = ()
        return self._cut("\n".join(part for part in (*printed, ending) if part))

    def _cut(self, text: str) -> str:
        limit = self._options.observation_chars
        if len(text) <= limit:
            return text
        notice = self._options.observation_notice.replace("{limit}", str(limit))
        return text[: limit // 2] + notice + text[len(text) - (limit - limit // 2) :]

    def _encode_printed(self, text: str) -> list[int]:
        """Encode text that a cell chose, so that it holds no control token whatever it spells.

        Any token added to the tokenizer's own alphabet may be one: not all models mark their trigger as special. Each
        spelling is cut in two before it is encoded, and what a tokenizer still makes of it (by normalising other
        characters into it, or because it is one character long) is left out.
        """
        cuts = [0, *(match.start() + 1 for match in self._control_text.finditer(text)), len(text)]
        token_ids = (t for start, end in pairwise(cuts) for t in self._encode(text[start:end]))
        return [t for t in token_ids if t not in self._control_ids]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _ending(run: Run) -> str:
    if run.error is not None and run.status == "error":
        return (run.error.traceback.strip() or f"{run.error.type}: {run.error.message}").splitlines()[-1]
    return _ENDINGS.get(run.status, "")

"""Stand-ins for what a rollout talks to: a policy that says what it was told, and an executor in this process."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cellar_client.errors import CellarError
from cellar_client.schemas import CellError, Run
from cellar_trainer.types import Completion, FinishReason, Sampling
from tests.tiny_model import EOS, TRIGGER


class ScriptedPolicy:
    """Answers the n-th request with the n-th text; what does not end with a stop token was cut by its length.

    Keeps what it was asked, and raises a text that is an exception. Log-probabilities are made up, but all different.
    """

    def __init__(self, tokenizer: Any, turns: Sequence[str | Exception], *, delay_s: float = 0.0) -> None:
        self.asked: list[tuple[list[int], Sampling]] = []
        self._tokenizer = tokenizer
        self._turns = list(turns)
        self._delay_s = delay_s

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        turn = self._turns[len(self.asked)]
        self.asked.append((list(token_ids), sampling))
        await asyncio.sleep(self._delay_s)
        if isinstance(turn, Exception):
            raise turn
        return scripted_completion(self._tokenizer, turn, sampling, base=10 * len(self.asked))

    async def close(self) -> None:
        pass


def scripted_completion(tokenizer: Any, text: str, sampling: Sampling, *, base: int = 0) -> Completion:
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))[: sampling.max_tokens]
    stopped = ids[-1] in sampling.stop_token_ids
    return Completion(
        token_ids=ids,
        logprobs=tuple(-(base + i) / 100 for i in range(len(ids))),
        trigger_logprobs=tuple(-(base + i) / 10 for i in range(len(ids))),
        policy_versions=(3,) * len(ids),
        finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
        stop_token_id=ids[-1] if stopped else None,
    )


@dataclass
class InProcessSession:
    pending: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    runs: int = 0

    async def queue_all(self, codes: list[str]) -> None:
        self.pending += codes

    async def run(self, *, timeout_s: float) -> Run:
        self.runs += 1
        code, self.pending = self.pending, []
        printed, error = io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            try:
                for cell in code:
                    exec(cell, self.names)
            except Exception as failure:
                error = CellError(type=type(failure).__name__, message=str(failure), traceback=repr(failure))
        return Run(
            run_id="r",
            session_id="s",
            generation=1,
            status="error" if error else "ok",
            cells=[],
            stdout=printed.getvalue(),
            error=error,
            duration_s=0.0,
            queue_s=0.0,
        )


@dataclass
class InProcessCellar:
    """What a rollout uses of `AsyncCellar`, for tests that are not about isolation."""

    opened: list[dict[str, Any]] = field(default_factory=list)
    closed: int = 0
    failure: CellarError | None = None
    make: Callable[[], InProcessSession] = InProcessSession

    @asynccontextmanager
    async def session(self, **asked: Any) -> AsyncIterator[InProcessSession]:
        if self.failure is not None:
            raise self.failure
        self.opened.append(asked)
        try:
            yield self.make()
        finally:
            self.closed += 1


def call(*blocks: str) -> str:
    """The text of a turn that writes these blocks, with words between them, and asks for a run."""
    return "\nthen\n".join(f"```python\n{block}\n```" for block in blocks) + TRIGGER


def answer(text: str) -> str:
    return rf"So it is \boxed{{{text}}}." + EOS

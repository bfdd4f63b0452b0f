"""Stand-ins for what a rollout talks to: a policy that says what it was told, and an executor in this process."""

import asyncio
import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from cellar_client.errors import CellarError, SessionLost
from cellar_client.operation import Operation
from cellar_client.schemas import CellError, CreateSession, Problem, QueueCells, Run, RunRequest, RunStatus
from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.types import Completion, FinishReason, Sampling
from tests.tiny_model import EOS, TRIGGER


class ScriptedPolicy:
    """Answers the n-th request with the n-th text; what does not end with a stop token was cut by its length.

    Keeps what it was asked. Raises a text that is an exception, and waits for one that is an event, which is then no
    answer. Log-probabilities are made up, but all different.
    """

    def __init__(self, tokenizer: Any, turns: Sequence[str | Exception | asyncio.Event]) -> None:
        self.asked: list[tuple[list[int], Sampling]] = []
        self._tokenizer = tokenizer
        self._turns = list(turns)

    async def generate(self, token_ids: Sequence[int], sampling: Sampling) -> Completion:
        turn = self._turns[len(self.asked)]
        self.asked.append((list(token_ids), sampling))
        if isinstance(turn, asyncio.Event):
            await turn.wait()
            turn = PolicyUnavailable("no answer")
        if isinstance(turn, Exception):
            raise turn
        return scripted_completion(self._tokenizer, turn, sampling, base=10 * len(self.asked))

    async def close(self) -> None:
        pass


def scripted_completion(
    tokenizer: Any, text: str, sampling: Sampling, *, base: int = 0, version: int = 3
) -> Completion:
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))[: sampling.max_tokens]
    stopped = ids[-1] in sampling.stop_token_ids
    return Completion(
        token_ids=ids,
        logprobs=tuple(-(base + i) / 100 for i in range(len(ids))),
        trigger_logprobs=tuple(-(base + i) / 10 for i in range(len(ids))),
        policy_versions=(version,) * len(ids),
        finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
        stop_token_id=ids[-1] if stopped else None,
    )


@dataclass
class InProcessSession:
    """Cells that share their names, in this process. One that raises `SystemExit` kills the session."""

    pending: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    runs: int = 0
    lost: bool = False

    async def run(self) -> Run:
        self.runs += 1
        code, self.pending = self.pending, []
        printed, error = io.StringIO(), None
        status: RunStatus = "ok"
        with contextlib.redirect_stdout(printed):
            try:
                for cell in code:
                    exec(cell, self.names)
            except SystemExit:
                self.lost, status = True, "killed"
            except Exception as failure:
                status = "error"
                error = CellError(type=type(failure).__name__, message=str(failure), traceback=repr(failure))
        return Run(
            run_id="r",
            session_id="s",
            generation=1,
            status=status,
            cells=[],
            stdout=printed.getvalue(),
            error=error,
            duration_s=0.0,
            queue_s=0.0,
        )


@dataclass
class InProcessCellar:
    """What a notebook uses of `AsyncCellar`, for tests that are not about isolation."""

    opened: list[dict[str, Any]] = field(default_factory=list)
    """What was asked for, for each session."""
    closed: int = 0
    requests: int = 0
    failure: CellarError | None = None
    """What every request is refused with."""
    make: Callable[[], InProcessSession] = InProcessSession
    sessions: dict[str, InProcessSession] = field(default_factory=dict)

    async def send(self, operation: Operation[Any]) -> Any:
        self.requests += 1
        return await self._do(operation)

    async def batch(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        self.requests += 1
        results: list[Any] = []
        for operation in operations:
            try:
                results.append(await self._do(operation))
            except CellarError as error:
                results.append(error)
        return results

    async def delete_session(self, session_id: str) -> None:
        self.closed += self.sessions.pop(session_id, None) is not None

    async def _do(self, operation: Operation[Any]) -> Any:
        if self.failure is not None:
            raise self.failure
        body = cast(Any, operation.body)
        if isinstance(body, CreateSession):
            self.opened.append(body.model_dump(exclude_defaults=True, exclude={"session_id"}))
            self.sessions[cast(str, body.session_id)] = self.make()
            return None
        session = self.sessions[cast(str, operation.session_id)]
        if session.lost:
            raise SessionLost(Problem(title="lost", status=410, code="session_lost"))
        session.pending += [cell.code for cell in body.cells or ()] if isinstance(body, QueueCells) else _code(body)
        return await session.run() if isinstance(body, RunRequest) else None


def _code(body: RunRequest) -> list[str]:
    return [] if body.code is None else [body.code]


def call(*blocks: str) -> str:
    """The text of a turn that writes these blocks, with words between them, and asks for a run."""
    return "\nthen\n".join(f"```python\n{block}\n```" for block in blocks) + TRIGGER


def answer(text: str) -> str:
    return rf"So it is \boxed{{{text}}}." + EOS

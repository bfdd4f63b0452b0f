"""Answers into grades: math-verify, in child processes that are killed when a comparison takes too long."""

import asyncio
import json
import math
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

Outcome = Literal["correct", "wrong", "no_answer", "unparsed", "timeout"]

MAX_ANSWER_CHARS = 4_000
"""What is longer is no answer: the longest ground truth of the usual sets has 200, and parsing takes its square."""

_CHILD = Path(__file__).with_name("grading_child.py")
_START_TIMEOUT_S = 120.0
_ORPHAN_GRACE_S = 10
_ATTEMPTS = 2


class GraderUnavailable(Exception):
    """No grading process starts: a fault of the installation or its machine, never an answer that is wrong."""


@dataclass(frozen=True, slots=True)
class Grade:
    correct: bool
    outcome: Outcome
    """"unparsed" also when the answer is too long, or broke its process twice; "timeout" when it was killed."""


class Grader:
    """Compares answers for as long as it is entered, at most `workers` at a time."""

    def __init__(self, *, workers: int = 1, timeout_s: float = 5.0) -> None:
        self.counts: Counter[Outcome] = Counter()
        """How many grades had each outcome so far."""
        self._workers = [_Worker(timeout_s) for _ in range(workers)]
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except BaseException:
            await self.__aexit__()
            raise
        for worker in self._workers:
            self._idle.put_nowait(worker)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    async def grade(self, answer: str | None, expected: str) -> Grade:
        """Whether `answer` is mathematically equal to `expected`. Raises `GraderUnavailable`."""
        outcome: Outcome
        if answer is None:
            outcome = "no_answer"
        elif len(answer) > MAX_ANSWER_CHARS:
            outcome = "unparsed"
        else:
            outcome = await self._compare(answer, expected)
        self.counts[outcome] += 1
        return Grade(outcome == "correct", outcome)

    async def _compare(self, answer: str, expected: str) -> Outcome:
        worker = await self._idle.get()
        try:
            return await worker.compare(answer, expected)
        finally:
            self._idle.put_nowait(worker)


class _Worker:
    """One child process, started again after it had to be killed."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process: Process | None = None

    async def compare(self, answer: str, expected: str) -> Outcome:
        """A child that dies may have died of something else, so an answer is at fault only if it ends a second one."""
        for _ in range(_ATTEMPTS):
            process = self._process or await self.start()
            outcome: Outcome | None = None
            try:
                async with asyncio.timeout(self._timeout_s):
                    outcome = await _ask(process, answer, expected)
            except TimeoutError:
                return "timeout"
            finally:
                if outcome is None:
                    await self.stop()
            if outcome is not None:
                return outcome
        return "unparsed"

    async def start(self) -> Process:
        give_up_s = math.ceil(self._timeout_s) + _ORPHAN_GRACE_S
        # Isolated and with an empty environment: what is compared was written by the model.
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", str(_CHILD), str(give_up_s), stdin=PIPE, stdout=PIPE, env={}
            )
        except OSError as error:
            raise GraderUnavailable(f"no grading process can be started: {error}") from error
        ready = b""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_START_TIMEOUT_S):
                    ready = await _stdout(process).readline()
        finally:
            if ready != b"ready\n":
                await self.stop()
        if ready != b"ready\n":
            raise GraderUnavailable("the grading process does not start; its error is on stderr")
        return process

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):  # it has ended by itself
                process.kill()
            await process.communicate()


async def _ask(process: Process, answer: str, expected: str) -> Outcome | None:
    """None when the process ended instead of answering."""
    assert process.stdin is not None
    with suppress(ConnectionError):
        process.stdin.write(json.dumps([answer, expected]).encode() + b"\n")
        await process.stdin.drain()
        if reply := await _stdout(process).readline():
            outcome: Outcome = json.loads(reply)
            return outcome
    return None


def _stdout(process: Process) -> asyncio.StreamReader:
    assert process.stdout is not None
    return process.stdout

"""One trajectory, from a prompt to its stop: the model writes, cells are queued, and at the trigger they run.

    sample a turn -> parse it -> queue its blocks -> trigger? run what is pending -> observation -> sample the next turn

Follows the rollout of IH-GRPO's reference code. It departs from it where it has to: sampling ends at the trigger
itself, so no text is cut and no text between the last block and the trigger is taken out; token ids are kept as they
were sampled; what is too long for the context ends the trajectory, where the reference drops tokens on the left; a turn
cut by its token limit is `max_tokens`, where the reference calls it void; and the limit counts runs (`max_runs`), not
turns.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from cellar_client import AsyncCellar, AsyncSession
from cellar_client.errors import CellarError
from cellar_client.schemas import Run
from cellar_trainer.parsing import ParsedTurn, boxed_answer, parse_turn
from cellar_trainer.policy.protocol import Policy, PolicyUnavailable
from cellar_trainer.rendering import Renderer
from cellar_trainer.types import (
    Completion,
    FinishReason,
    Sampling,
    Segment,
    SegmentKind,
    StopReason,
    Task,
    Trajectory,
)


class RolloutFailed(Exception):
    """A service failed, not the policy: the trajectory has no reward and has to be dropped."""


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    sampling: Sampling
    """Of every turn: its `max_tokens` is the longest turn, its stop tokens are the trigger and the end of sequence."""
    max_context_tokens: int = 16_000
    max_runs: int = 5
    deadline_s: float = 600.0
    """For the whole trajectory, its waiting for services included."""
    cell_timeout_s: float = 3.0
    memory_mb: int | None = None
    """Of the session; the executor's own limit when left out."""
    stop_on_printed_answer: bool = True
    """A run that prints `\\boxed{...}` ends the trajectory with that answer."""


async def rollout(
    task: Task, policy: Policy, cellar: AsyncCellar, renderer: Renderer, options: RolloutOptions, *, seed: int
) -> Trajectory:
    """Play one trajectory. Its session is made for its first block and gone when it ends.

    Raises `RolloutFailed` when the policy or the executor failed. A failing cell is an observation like any other.
    """
    trajectory = Trajectory(task)
    try:
        async with AsyncExitStack() as resources:

            async def open_session() -> AsyncSession:
                limits = {} if options.memory_mb is None else {"memory_mb": options.memory_mb}
                session_seed = derive_seed(seed, "session")
                session = cellar.session(limits=limits, seed=session_seed, idle_ttl_s=options.deadline_s)
                return await resources.enter_async_context(session)

            await _Episode(trajectory, policy, renderer, options, seed, open_session).play_until_deadline()
    except (PolicyUnavailable, CellarError) as error:
        raise RolloutFailed(f"{task.task_id}: {type(error).__name__}: {error}") from error
    return trajectory


def derive_seed(*parts: object) -> int:
    """A seed of 32 bits from anything printable: the same parts give the same seed, others an unrelated one."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def verdict(turn: ParsedTurn, completion: Completion, runs: int, options: RolloutOptions) -> StopReason | None:
    """Whether a sampled turn ends the trajectory; None means that its cells are to be run."""
    if turn.answer is not None:
        return StopReason.ANSWERED
    if completion.finish_reason is FinishReason.LENGTH:
        return StopReason.MAX_TOKENS
    if completion.stop_token_id != options.sampling.trigger_id or not turn.blocks:
        return StopReason.VOID
    if runs >= options.max_runs:
        return StopReason.MAX_RUNS
    return None


@dataclass(slots=True)
class _Episode:
    trajectory: Trajectory
    policy: Policy
    renderer: Renderer
    options: RolloutOptions
    seed: int
    open_session: Callable[[], Awaitable[AsyncSession]]
    session: AsyncSession | None = None
    turns: int = 0

    async def play_until_deadline(self) -> None:
        self._append(SegmentKind.PROMPT, self.renderer.prompt_ids(self.trajectory.task))
        try:
            async with asyncio.timeout(self.options.deadline_s):
                while self.trajectory.stop_reason is None:
                    await self._turn()
        except TimeoutError:
            self.trajectory.stop_reason = StopReason.DEADLINE

    async def _turn(self) -> None:
        room = self.options.max_context_tokens - len(self.trajectory.token_ids)
        if room <= 0:
            self.trajectory.stop_reason = StopReason.MAX_TOKENS
            return
        completion = await self._sample(room)
        turn = parse_turn(self.renderer.text(_without_stop_token(completion)))
        self.trajectory.answer = turn.answer
        self.trajectory.stop_reason = verdict(turn, completion, self.trajectory.runs, self.options)
        if turn.blocks:
            await self._queue(turn.blocks)
        if self.trajectory.stop_reason is None:
            await self._run(turn)

    async def _sample(self, room: int) -> Completion:
        limit = min(room, self.options.sampling.max_tokens)
        sampling = replace(self.options.sampling, max_tokens=limit, seed=derive_seed(self.seed, "turn", self.turns))
        completion = await self.policy.generate(self.trajectory.token_ids, sampling)
        self.turns += 1
        self.trajectory.segments.append(
            Segment(
                SegmentKind.SAMPLED,
                completion.token_ids,
                completion.logprobs,
                completion.trigger_logprobs,
                completion.policy_versions,
            )
        )
        return completion

    async def _queue(self, blocks: Sequence[str]) -> None:
        self.session = self.session or await self.open_session()
        await self.session.queue_all(list(blocks))
        self.trajectory.cells += len(blocks)
        self.trajectory.unrun_cells += len(blocks)

    async def _run(self, turn: ParsedTurn) -> None:
        run = await self._run_pending()
        self.trajectory.runs += 1
        self.trajectory.unrun_cells = 0
        self.trajectory.deferred_cells += 0 if turn.trivial_split else len(turn.blocks) - 1
        self._append(SegmentKind.OBSERVATION, self.renderer.observation_ids(run))
        printed = boxed_answer(run.stdout) if self.options.stop_on_printed_answer else None
        if printed is not None:
            self.trajectory.answer = printed
            self.trajectory.stop_reason = StopReason.ANSWERED

    async def _run_pending(self) -> Run:
        assert self.session is not None, "a run needs a turn with a block, and that opened the session"
        run = await self.session.run(timeout_s=self.options.cell_timeout_s)
        if run.status == "lost":
            raise RolloutFailed(f"{self.trajectory.task.task_id}: the executor lost a run")
        return run

    def _append(self, kind: SegmentKind, token_ids: Sequence[int]) -> None:
        self.trajectory.segments.append(Segment(kind, tuple(token_ids)))


def _without_stop_token(completion: Completion) -> tuple[int, ...]:
    return completion.token_ids if completion.stop_token_id is None else completion.token_ids[:-1]

"""One trajectory, from a prompt to its stop: the model writes, its blocks rest, and at the trigger they run.

    sample a turn -> parse it -> trigger? run its blocks -> observation -> sample the next turn

Follows the rollout of IH-GRPO's reference code, by options whose defaults are its behaviour. Where it departs:

* Sampling ends at the trigger itself, so no text is cut, and none between the last block and the trigger is taken out.
* Token ids are kept as they were sampled: nothing is decoded and encoded again.
* What is too long for the context ends the trajectory; the reference drops tokens on the left.
* A turn cut by its token limit is `max_tokens`, not void, so that it can be treated otherwise (`reward.overlong`).
* Blocks run as cells of their own, one after the other until one fails; the reference joins them with newlines and runs
  the text. What a failing block or those before it defined stays, as in a notebook (`atomic_runs`: it does not, as in
  the reference). The executor shows the value of a last expression, as a notebook does; the reference wraps the last
  line in `print(...)`.
* What counts as an answer and as a trivial split: see `parsing`. What an observation shows: see `rendering`.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from cellar_client import AsyncCellar
from cellar_client.errors import CellarError
from cellar_client.schemas import Run
from cellar_trainer.policy.protocol import Policy, PolicyUnavailable
from cellar_trainer.rollouts.notebook import Notebook, can_run
from cellar_trainer.rollouts.parsing import ParsedTurn, boxed_answer, parse_turn
from cellar_trainer.rollouts.rendering import Renderer
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

Fault = Literal["policy", "executor", "grader", "stale"]
"""Who failed a rollout. "stale": the policy answered, with weights that are too old."""


class RolloutFailed(Exception):
    """A service failed, not the policy: the trajectory has no reward and has to be dropped."""

    def __init__(self, message: str, fault: Fault = "executor") -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    sampling: Sampling
    """Of every turn: its `max_tokens` is the longest turn, its stop tokens are the trigger and the end of sequence."""
    max_context_tokens: int = 16_000
    """Of the whole trajectory, its prompt included."""
    max_turns: int = 5
    """Turns that are sampled; the run that the last one asks for is still made, and may print the answer."""
    max_runs: int | None = None
    """Asking for one run more ends the trajectory. Without it only turns are limited, as in the reference."""
    deadline_s: float = 600.0
    """For the whole trajectory, its waiting for services included."""
    cell_timeout_s: float = 3.0
    """For each block. One that takes longer is stopped, and the model sees that it was."""
    memory_mb: int | None = None
    """Of the session; the executor's own limit when left out."""
    stop_on_printed_answer: bool = True
    """A run that prints `\\boxed{...}` ends the trajectory with that answer."""
    answer_outranks_run: bool = False
    """A turn that gives an answer after its last block and yet asks for a run ends there. The reference runs it."""
    split_check: bool = True
    """Blocks that are one block cut up count as no deferral. They run all the same."""
    atomic_runs: bool = False
    """A run that fails leaves the session as it was before it, as in the reference; costs a replay of earlier cells."""

    def notebook(self, cellar: AsyncCellar, *, seed: int) -> Notebook:
        """For one rollout with this seed."""
        return Notebook(
            cellar,
            seed=derive_seed(seed, "session"),
            cell_timeout_s=self.cell_timeout_s,
            idle_ttl_s=self.deadline_s,
            memory_mb=self.memory_mb,
            atomic=self.atomic_runs,
        )


class Runner(Protocol):
    """What a rollout uses of a `Notebook`."""

    async def run(self, blocks: Sequence[str]) -> Run: ...


async def rollout(
    task: Task,
    policy: Policy,
    notebook: Runner,
    renderer: Renderer,
    options: RolloutOptions,
    *,
    seed: int,
    oldest_version: int = 0,
) -> Trajectory:
    """Play one trajectory, for at most `deadline_s`.

    Raises `RolloutFailed` when the policy or the executor failed, and as soon as a token was sampled by weights older
    than `oldest_version`. A failing cell is an observation like any other.
    """
    trajectory = Trajectory(task)
    episode = _Episode(trajectory, policy, notebook, renderer, options, seed, oldest_version)
    try:
        async with asyncio.timeout(options.deadline_s) as deadline:
            await episode.play()
    except TimeoutError:
        if not deadline.expired():
            raise
        trajectory.stop_reason = StopReason.DEADLINE
    except PolicyUnavailable as error:
        raise RolloutFailed(f"{task.task_id}: {type(error).__name__}: {error}", "policy") from error
    except CellarError as error:
        raise RolloutFailed(f"{task.task_id}: {type(error).__name__}: {error}", "executor") from error
    return trajectory


def derive_seed(*parts: object) -> int:
    """A seed of 32 bits from anything printable: the same parts give the same seed, others an unrelated one."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def verdict(turn: ParsedTurn, completion: Completion, runs: int, options: RolloutOptions) -> StopReason | None:
    """Whether a sampled turn ends the trajectory; None means that its blocks are to be run."""
    asks_for_run = completion.stop_token_id == options.sampling.trigger_id and can_run(turn.blocks)
    gets_run = asks_for_run and (options.max_runs is None or runs < options.max_runs)
    if turn.answer is not None and (options.answer_outranks_run or not gets_run):
        return StopReason.ANSWERED
    if gets_run:
        return None
    if asks_for_run:
        return StopReason.MAX_RUNS
    return StopReason.MAX_TOKENS if completion.finish_reason is FinishReason.LENGTH else StopReason.VOID


@dataclass(slots=True)
class _Episode:
    trajectory: Trajectory
    policy: Policy
    notebook: Runner
    renderer: Renderer
    options: RolloutOptions
    seed: int
    oldest_version: int
    turns: int = 0
    context: list[int] = field(default_factory=list)
    """The tokens of all segments."""

    async def play(self) -> None:
        self._append(Segment(SegmentKind.PROMPT, self.renderer.prompt_ids(self.trajectory.task)))
        while self.trajectory.stop_reason is None:
            await self._turn()

    async def _turn(self) -> None:
        room = self.options.max_context_tokens - len(self.context)
        if room <= 0:
            self.trajectory.stop_reason = StopReason.MAX_TOKENS
            return
        completion = await self._sample(room)
        turn = parse_turn(self.renderer.text(_without_stop_token(completion)))
        self.trajectory.cells += len(turn.blocks)
        stop_reason = verdict(turn, completion, self.trajectory.runs, self.options)
        if stop_reason is None:
            await self._run(turn)
        else:
            self.trajectory.unrun_cells = len(turn.blocks)
            self._stop(stop_reason, turn.answer)

    async def _sample(self, room: int) -> Completion:
        limit = min(room, self.options.sampling.max_tokens)
        sampling = replace(self.options.sampling, max_tokens=limit, seed=derive_seed(self.seed, "turn", self.turns))
        completion = await self.policy.generate(self.context, sampling)
        if min(completion.policy_versions, default=self.oldest_version) < self.oldest_version:
            version = min(completion.policy_versions)
            message = f"sampled by weights of version {version}, older than {self.oldest_version}"
            raise RolloutFailed(f"{self.trajectory.task.task_id}: {message}", "stale")
        self.turns += 1
        self._append(
            Segment(
                SegmentKind.SAMPLED,
                completion.token_ids,
                completion.logprobs,
                completion.trigger_logprobs,
                completion.policy_versions,
            )
        )
        return completion

    async def _run(self, turn: ParsedTurn) -> None:
        self.trajectory.unrun_cells = len(turn.blocks)  # until they have run: the deadline may come first
        run = await self.notebook.run(turn.blocks)
        if run.status == "lost":
            raise RolloutFailed(f"{self.trajectory.task.task_id}: the executor lost a run", "executor")
        self.trajectory.runs += 1
        self.trajectory.unrun_cells = 0
        if not (self.options.split_check and turn.trivial_split):
            self.trajectory.deferred_cells += len(turn.blocks) - 1
        self._append(Segment(SegmentKind.OBSERVATION, self.renderer.observation_ids(run)))
        printed = boxed_answer(run.stdout) if self.options.stop_on_printed_answer else None
        if printed is not None:
            self._stop(StopReason.ANSWERED, printed)
        elif self.turns >= self.options.max_turns:
            self._stop(StopReason.MAX_TURNS)

    def _stop(self, reason: StopReason, answer: str | None = None) -> None:
        self.trajectory.stop_reason = reason
        self.trajectory.answer = answer

    def _append(self, segment: Segment) -> None:
        self.trajectory.segments.append(segment)
        self.context += segment.token_ids


def _without_stop_token(completion: Completion) -> tuple[int, ...]:
    return completion.token_ids if completion.stop_token_id is None else completion.token_ids[:-1]

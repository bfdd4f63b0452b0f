"""The nouns of the trainer: one value flows, Task -> Trajectory -> Group -> Batch. Imports nothing of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Task:
    """One problem: what the model is shown and what counts as the answer."""

    task_id: str
    problem: str
    answer: str
    source: str = ""


class SegmentKind(StrEnum):
    PROMPT = "prompt"
    SAMPLED = "sampled"
    """Tokens that the policy chose: the only ones that are trained on."""
    OBSERVATION = "observation"


class StopReason(StrEnum):
    ANSWERED = "answered"
    """The model gave a final answer (in its own text, or printed by a run)."""
    VOID = "void"
    """A turn that ended with neither an answer nor a run of at least one cell."""
    MAX_RUNS = "max_runs"
    """The model asked for a run after its last one was used up."""
    MAX_TURNS = "max_turns"
    """The run of the last turn was shown, and there is no turn left to make use of it."""
    MAX_TOKENS = "max_tokens"
    """The turn or the whole context ran out of tokens."""
    DEADLINE = "deadline"
    """The trajectory's wall-clock time ran out."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one origin.

    The three other per-token values are as long as `token_ids` when `kind` is SAMPLED, and empty otherwise.
    """

    kind: SegmentKind
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    """Log-probability of each token under the policy that sampled it, after temperature."""
    trigger_logprobs: tuple[float, ...] = ()
    """Log-probability of the trigger token at each position, under the same policy."""
    policy_versions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        expected = len(self.token_ids) if self.kind is SegmentKind.SAMPLED else 0
        for name in ("logprobs", "trigger_logprobs", "policy_versions"):
            if len(getattr(self, name)) != expected:
                raise ValueError(f"{self.kind}: {len(self.token_ids)} tokens, {len(getattr(self, name))} {name}")


@dataclass(slots=True)
class Trajectory:
    """One episode of the policy on one task: a list of segments from which everything per-token is derived.

    With prompt `P0`, sampled turns `S0`, `S1` and one observation `O0`:

        segments         = [P0, S0, O0, S1]
        token_ids        = P0 + S0 + O0 + S1
        loss_mask        = [0]*len(P0) + [1]*len(S0) + [0]*len(O0) + [1]*len(S1)
        logprobs         = [0.]*len(P0) + logprobs(S0) + [0.]*len(O0) + logprobs(S1)

    so that masks and log-probabilities cannot disagree with the tokens in length.
    """

    task: Task
    segments: list[Segment] = field(default_factory=list)
    stop_reason: StopReason | None = None
    answer: str | None = None
    """The final answer as the model gave it, not yet compared with anything."""
    correct: bool | None = None
    """Whether the answer was right, before any shaping of the reward."""
    grade: str | None = None
    """How it was graded: one of `rewards.Outcome`."""
    reward: float | None = None
    runs: int = 0
    cells: int = 0
    """Code blocks that were queued, whether they ran or not."""
    deferred_cells: int = 0
    """Per turn that ended in a run, its blocks less one; 0 for a turn whose blocks are a trivial split of one block."""
    unrun_cells: int = 0
    """Cells still pending when the trajectory ended: accepted, never run."""

    @property
    def token_ids(self) -> list[int]:
        return [t for s in self.segments for t in s.token_ids]

    @property
    def loss_mask(self) -> list[int]:
        return [int(s.kind is SegmentKind.SAMPLED) for s in self.segments for _ in s.token_ids]

    @property
    def logprobs(self) -> list[float]:
        return self._per_token("logprobs")

    @property
    def trigger_logprobs(self) -> list[float]:
        return self._per_token("trigger_logprobs")

    @property
    def sampled_count(self) -> int:
        return sum(len(s.token_ids) for s in self.segments if s.kind is SegmentKind.SAMPLED)

    @property
    def policy_versions(self) -> tuple[int, int] | None:
        """Oldest and newest policy version among the sampled tokens; None when nothing was sampled."""
        versions = [v for s in self.segments for v in s.policy_versions]
        return (min(versions), max(versions)) if versions else None

    def _per_token(self, name: str) -> list[float]:
        return [
            x
            for s in self.segments
            for x in (getattr(s, name) if s.kind is SegmentKind.SAMPLED else (0.0,) * len(s.token_ids))
        ]


@dataclass(frozen=True, slots=True)
class Group:
    """Trajectories that are compared with each other: several of one task, all finished and graded."""

    key: str
    trajectories: Sequence[Trajectory]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the policy is asked for one turn."""

    max_tokens: int
    temperature: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    """Sampling ends with any of these; the token itself stays in the result."""
    trigger_id: int | None = None
    """Whose log-probability is wanted at every position."""


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy sampled for one turn; all lists have one entry per token."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    trigger_logprobs: tuple[float, ...]
    policy_versions: tuple[int, ...]
    finish_reason: FinishReason
    stop_token_id: int | None = None


Metrics = Mapping[str, float]

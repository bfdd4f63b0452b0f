"""The configuration of every command: a TOML file, then `key=value` changes. Read once, checked, and passed down.

A section is either an options class of the module that uses it, or one of the classes here. Relative paths are relative
to the working directory.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as dataclass_fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from cellar_client.schemas import Seconds
from cellar_trainer.data.tasks import TaskOptions
from cellar_trainer.evaluation.options import EvalOptions
from cellar_trainer.learning.learner import OptimiserOptions
from cellar_trainer.learning.lora import LoraOptions
from cellar_trainer.learning.model import ControlTokens
from cellar_trainer.learning.objectives import PRESETS, ObjectiveOptions
from cellar_trainer.policy.options import PolicyOptions
from cellar_trainer.rewards.alarm import AlarmOptions
from cellar_trainer.rewards.shaping import RewardOptions
from cellar_trainer.rollouts.collect import CollectOptions
from cellar_trainer.rollouts.rendering import RenderingOptions
from cellar_trainer.rollouts.rollout import RolloutOptions
from cellar_trainer.telemetry.loggers import LogOptions
from cellar_trainer.train import TrainOptions
from cellar_trainer.types import Sampling


class ConfigError(Exception):
    """A configuration that cannot be used; the message has one line per mistake, each with the key's whole path."""


@dataclass(frozen=True, slots=True)
class ModelSection:
    path: Path
    """A folder as `save_pretrained` writes it: the model to start from."""
    trigger: str = "<tool_call>"
    """The text of the trigger; it has to be one token."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights that are trained. A half-precision weight loses every update smaller than its last bit, and small
    learning rates make no others: prefer `compute_dtype`."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model's arithmetic; "bfloat16" runs it under autocast, with weights, sums and objective as they are."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: a third more time, far less memory."""
    device: str = "cpu"
    """"cpu" or "cuda"; with several processes each takes the GPU of its local rank."""


@dataclass(frozen=True, slots=True)
class ExecutorSection:
    url: str = "http://127.0.0.1:8080"
    """Root of an executor, without `/v1`; of several, their addresses with commas between them."""
    api_key: SecretStr | None = None
    """`CELLAR_API_KEY` when left out."""


@dataclass(frozen=True, slots=True)
class RolloutSection:
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the sampling; the objective's log-probabilities are those after it."""
    max_turn_tokens: Annotated[int, Field(ge=1)] = 8000
    """Longest turn."""
    max_context_tokens: Annotated[int, Field(ge=1)] = 16_000
    """Of the whole trajectory, its prompt included. What does not fit ends the trajectory."""
    max_turns: Annotated[int, Field(ge=1)] = 5
    """Turns that are sampled; the run that the last one asks for is still made, and may print the answer."""
    max_runs: Annotated[int, Field(ge=0)] | None = None
    """Asking for one run more ends the trajectory. Without it only turns are limited."""
    deadline_s: Seconds = 600.0
    """For a whole trajectory, its waiting for services included."""
    cell_timeout_s: Seconds = 3.0
    """For each block. One that takes longer is stopped, and the model sees that it was."""
    memory_mb: Annotated[int, Field(ge=32)] | None = None
    """Of a session; the executor's own limit when left out."""
    stop_on_printed_answer: bool = True
    """A run that prints `\\boxed{...}` ends the trajectory with that answer."""
    answer_outranks_run: bool = False
    """A turn that gives an answer after its last block and yet asks for a run ends there, without the run."""
    split_check: bool = True
    """Blocks that are one block cut up count as no deferral. They run all the same."""
    atomic_runs: bool = False
    """A run that fails leaves the session as it was before it; costs a replay of earlier cells."""
    concurrency: Annotated[int, Field(ge=1)] = 128
    """Trajectories that are played at once."""

    def options(self, tokens: ControlTokens) -> RolloutOptions:
        return RolloutOptions(
            sampling=Sampling(
                max_tokens=self.max_turn_tokens,
                temperature=self.temperature,
                stop_token_ids=(tokens.trigger_id, tokens.eos_id),
                trigger_id=tokens.trigger_id,
            ),
            max_context_tokens=self.max_context_tokens,
            max_turns=self.max_turns,
            max_runs=self.max_runs,
            deadline_s=self.deadline_s,
            cell_timeout_s=self.cell_timeout_s,
            memory_mb=self.memory_mb,
            stop_on_printed_answer=self.stop_on_printed_answer,
            answer_outranks_run=self.answer_outranks_run,
            split_check=self.split_check,
            atomic_runs=self.atomic_runs,
        )


def _expand_preset(value: Any) -> Any:
    """`preset = "released"` in the table [objective] stands for that preset's values; other keys change them."""
    if not isinstance(value, dict) or "preset" not in value:
        return value
    changes = dict(value)
    name = changes.pop("preset")
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    return {**PRESETS[name], **changes}


class Config(BaseModel):
    """Everything a command needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: Path
    """Folder of this run: metrics, trajectories, checkpoints."""
    model: ModelSection
    tasks: TaskOptions
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    executor: ExecutorSection = field(default_factory=ExecutorSection)
    rendering: RenderingOptions = field(default_factory=RenderingOptions)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    reward: RewardOptions = field(default_factory=RewardOptions)
    collect: CollectOptions = field(default_factory=CollectOptions)
    alarm: AlarmOptions = field(default_factory=AlarmOptions)
    objective: Annotated[ObjectiveOptions, BeforeValidator(_expand_preset)] = ObjectiveOptions()
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    eval: EvalOptions = field(default_factory=EvalOptions)
    log: LogOptions = field(default_factory=LogOptions)

    @model_validator(mode="after")
    def _overlap_is_allowed(self) -> Self:
        if self.train.overlap != "off" and self.train.max_staleness == 0:
            raise ValueError("train.overlap samples with weights one step old: train.max_staleness has to be 1 or more")
        return self

    @model_validator(mode="after")
    def _a_silent_server_is_noticed(self) -> Self:
        if self.policy.timeout_s >= self.rollout.deadline_s:
            raise ValueError(
                "policy.timeout_s has to be less than rollout.deadline_s: else a model server that does not answer "
                "looks like a trajectory that took too long"
            )
        return self

    @model_validator(mode="after")
    def _evaluation_has_problems(self) -> Self:
        if self.train.evaluate_every > 0 and not self.eval.suite:
            raise ValueError("train.evaluate_every: name the problems in eval.suite")
        return self

    @model_validator(mode="after")
    def _transfer_has_a_gpu(self) -> Self:
        if self.policy.kind == "vllm" and self.policy.transfer in ("ipc", "nccl") and self.model.device == "cpu":
            raise ValueError(f'policy.transfer = "{self.policy.transfer}" needs model.device = "cuda"')
        return self

    @model_validator(mode="after")
    def _gate_can_be_sampled(self) -> Self:
        if self.objective.name == "eh_grpo" and self.policy.kind != "local":
            raise ValueError('objective.name = "eh_grpo" needs policy.kind = "local": vLLM knows of no explicit gate')
        return self


def load_config(path: Path, changes: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Config:
    """Read a TOML file and apply `key=value` changes, as in `optimiser.learning_rate=1e-5`, and then `values`, which
    are taken as they are, by key. Raises `ConfigError`."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise ConfigError(f"{change!r} is not of the form key=value")
        _set(tables, key.strip(), _toml_value(text.strip()))
    for key, value in (values or {}).items():
        _set(tables, key, value)
    return parse_config(tables)


def parse_config(tables: Mapping[str, Any]) -> Config:
    """Check a configuration given as nested tables. Raises `ConfigError`, with all mistakes at once."""
    try:
        return Config.model_validate(tables)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(mistake["loc"], mistake["msg"]) for mistake in error.errors())) from error


def _set(tables: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    table = tables
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{key}: {section} is not a section")
    table[name] = value


def _toml_value(text: str) -> Any:
    """A TOML value, or, since a shell takes the quotes away, the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(location: Iterable[int | str], message: str) -> str:
    path = [str(part) for part in location]
    if not path:
        return message
    *sections, last = path
    if message in ("Extra inputs are not permitted", "Unexpected keyword argument"):
        near = get_close_matches(last, _keys(sections), n=1)
        message = "no such key" + (f"; did you mean {'.'.join([*sections, *near])}?" if near else "")
    return f"{'.'.join(path)}: {message}"


def _keys(sections: Sequence[str]) -> list[str]:
    """The keys that exist in a section."""
    if not sections:
        return list(Config.model_fields)
    kind: Any = Config.model_fields[sections[0]].annotation
    return [f.name for f in dataclass_fields(kind)] if is_dataclass(kind) else list(kind.model_fields)

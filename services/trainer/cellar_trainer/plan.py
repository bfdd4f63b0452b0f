"""What a training run would do and need, before anything is started: `cellar-trainer train --dry-run`."""

from cellar_trainer.config import Config
from cellar_trainer.data.tasks import load_tasks
from cellar_trainer.learning.distributed import launched_ranks
from cellar_trainer.learning.lora import LoraOptions
from cellar_trainer.learning.memory import Shape, predicted_memory, shape_model
from cellar_trainer.learning.model import control_tokens, load_tokenizer
from cellar_trainer.learning.objectives import ObjectiveOptions

GIB = 2**30


def plan(config: Config) -> list[tuple[str, str]]:
    """Rows of (what, how much). Reads the model's configuration, the tokenizer and the tasks; calls no service.

    Raises what training would raise for an unusable model or task file.
    """
    tokens = control_tokens(load_tokenizer(config.model.path), config.model.trigger)
    tasks = load_tasks(config.tasks.path, limit=config.tasks.limit)
    parameters, memory = _memory(config)
    ranks = launched_ranks()
    per_step = config.collect.tasks * config.collect.siblings
    return [
        ("model", f"{config.model.path}, {parameters / 1e6:,.1f} M parameters, {config.model.dtype}"),
        ("trained", _trained(config)),
        ("trigger", f"{config.model.trigger!r}, token {tokens.trigger_id}"),
        ("objective", _objective(config.objective)),
        ("tasks", f"{len(tasks)} from {config.tasks.path}"),
        ("a step", f"{config.collect.tasks} tasks x {config.collect.siblings} siblings = {per_step} trajectories"),
        ("all steps", f"{config.train.steps} steps, {config.train.steps * per_step / max(1, len(tasks)):.1f} per task"),
        ("policy", f"{config.policy.kind}" + (f" at {config.policy.url}" if config.policy.kind == "vllm" else "")),
        ("executor", config.executor.url),
        ("output", str(config.output)),
        *((f"memory: {name}", f"{size / GIB:.2f} GiB") for name, size in memory.items()),
        (
            f"memory: all, on {config.model.device}" + (f", each of {ranks} processes" if ranks > 1 else ""),
            f"{sum(memory.values()) / GIB:.2f} GiB (estimate)",
        ),
    ]


def _objective(objective: ObjectiveOptions) -> str:
    layered = objective.name != objective.base
    terms = f", f {objective.f}, weight {objective.weight:g}" if objective.name == "ih_grpo" else ""
    return f"{objective.name}{f' on {objective.base}' if layered else ''}{terms}, mean over {objective.loss_mean}"


def _trained(config: Config) -> str:
    what = f"LoRA adapters of rank {config.lora.rank}" if config.lora.rank else "all weights"
    checkpointing = ", activations computed twice" if config.model.activation_checkpointing else ""
    return f"{what}, arithmetic in {config.model.compute_dtype}{checkpointing}"


def _memory(config: Config) -> tuple[int, dict[str, float]]:
    """Number of the model's own parameters, and bytes by use in each of the trainer's processes."""
    width = config.rollout.max_context_tokens
    parameters = shape_model(config.model.path, dtype=config.model.dtype, lora=LoraOptions()).num_parameters()
    memory = predicted_memory(
        shape_model(config.model.path, dtype=config.model.dtype, lora=config.lora),
        Shape(max(1, config.train.token_budget // width), width),
        compute_dtype=config.model.compute_dtype,
        activation_checkpointing=config.model.activation_checkpointing,
        ranks=launched_ranks(),
        sent_from_gpu=config.policy.kind == "vllm" and config.policy.transfer in ("nccl", "ipc"),
    )
    return parameters, memory

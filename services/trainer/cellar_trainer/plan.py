"""What a training run would do and need, before anything is started: `cellar-trainer train --dry-run`."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cellar_trainer.config import Config
from cellar_trainer.model import control_tokens, load_tokenizer
from cellar_trainer.objectives import ObjectiveOptions
from cellar_trainer.tasks import load_tasks

GIB = 2**30
LIVE_VALUES_PER_TOKEN_AND_LAYER = 17
"""Hidden-sized values that a layer keeps for its backward pass (arXiv 2205.05198, without the attention map)."""
HEAD_TILE = 1024 * 8192
"""Logits of the head that exist at once, in float32."""
HEAD_COPIES = 3


def plan(config: Config) -> list[tuple[str, str]]:
    """Rows of (what, how much). Reads the model's configuration, the tokenizer and the tasks; calls no service.

    Raises what training would raise for an unusable model or task file.
    """
    tokens = control_tokens(load_tokenizer(config.model.path), config.model.trigger)
    tasks = load_tasks(config.tasks.path, limit=config.tasks.limit)
    parameters, memory = _memory(config)
    per_step = config.collect.tasks * config.collect.siblings
    return [
        ("model", f"{config.model.path}, {parameters / 1e6:,.1f} M parameters, {config.model.dtype}"),
        ("trigger", f"{config.model.trigger!r}, token {tokens.trigger_id}"),
        ("objective", _objective(config.objective)),
        ("tasks", f"{len(tasks)} from {config.tasks.path}"),
        ("a step", f"{config.collect.tasks} tasks x {config.collect.siblings} siblings = {per_step} trajectories"),
        ("all steps", f"{config.train.steps} steps, {config.train.steps * per_step / max(1, len(tasks)):.1f} per task"),
        ("policy", f"{config.policy.kind}" + (f" at {config.policy.url}" if config.policy.kind == "vllm" else "")),
        ("executor", config.executor.url),
        ("output", str(config.output)),
        *((f"memory: {name}", f"{size / GIB:.2f} GiB") for name, size in memory.items()),
        ("memory: all, on " + config.model.device, f"{sum(memory.values()) / GIB:.2f} GiB (estimate)"),
    ]


def _objective(objective: ObjectiveOptions) -> str:
    layered = objective.name != objective.base
    terms = f", f {objective.f}, weight {objective.weight:g}" if objective.name == "ih_grpo" else ""
    return f"{objective.name}{f' on {objective.base}' if layered else ''}{terms}, mean over {objective.loss_mean}"


def _memory(config: Config) -> tuple[int, dict[str, float]]:
    """Number of parameters, and bytes by use, of the trainer's process alone."""
    architecture = AutoConfig.from_pretrained(config.model.path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    parameters = sum(weight.numel() for weight in model.parameters())
    size = getattr(torch, config.model.dtype).itemsize
    per_token = LIVE_VALUES_PER_TOKEN_AND_LAYER * architecture.hidden_size * architecture.num_hidden_layers
    return parameters, {
        "weights": parameters * size,
        "gradients": parameters * size,
        "optimiser": 2 * parameters * size,
        "activations": config.train.token_budget * per_token * size,
        "head": HEAD_COPIES * min(HEAD_TILE, config.train.token_budget * architecture.vocab_size) * 4,
    }

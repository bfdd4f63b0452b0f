"""From a configuration to live objects: the one place that knows which implementation stands behind a protocol."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import torch
from pydantic import SecretStr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cellar_client import AsyncCellar
from cellar_trainer import checkpoint
from cellar_trainer.config import Config, ConfigError
from cellar_trainer.data.tasks import load_tasks
from cellar_trainer.evaluation.play import evaluate
from cellar_trainer.evaluation.report import metrics as report_metrics
from cellar_trainer.evaluation.report import report
from cellar_trainer.evaluation.suites import Suite, load_suite
from cellar_trainer.learning.distributed import Leader, serve
from cellar_trainer.learning.learner import Learner
from cellar_trainer.learning.model import ControlTokens, control_tokens, load_model, load_tokenizer
from cellar_trainer.learning.sharding import ranks
from cellar_trainer.policy.local import LocalPolicy
from cellar_trainer.policy.options import PolicyOptions
from cellar_trainer.policy.protocol import Policy
from cellar_trainer.policy.vllm import RouteMissing, VLLMControl, VLLMPolicy
from cellar_trainer.policy.vllm.wire import UNPUBLISHED
from cellar_trainer.rewards.alarm import RewardAlarm
from cellar_trainer.rewards.grader import Grader
from cellar_trainer.rollouts.collect import Rollouts, TaskStream
from cellar_trainer.rollouts.rendering import Renderer
from cellar_trainer.rollouts.supply import Supply
from cellar_trainer.telemetry.loggers import open_loggers
from cellar_trainer.telemetry.metrics import RunLog
from cellar_trainer.telemetry.progress import Progress
from cellar_trainer.train import Training
from cellar_trainer.types import Metrics, Task
from cellar_trainer.weights import (
    Broadcast,
    FileTransfer,
    GlooGroup,
    IPCTransfer,
    LocalPublisher,
    NCCLGroup,
    ServedPublisher,
    Transfer,
    WeightPublisher,
)

VLLM_KEY_VARIABLE = "CELLAR_VLLM_KEY"
PROBE_TOKENS = 64
GRADERS = 2


@asynccontextmanager
async def open_rollouts(config: Config) -> AsyncIterator[Rollouts]:
    """For playing without training. A policy served by vLLM is taken as it is served; a local one is `model.path`."""
    tokenizer = load_tokenizer(config.model.path)
    async with AsyncExitStack() as resources:
        if config.policy.kind == "vllm":
            policy: Policy = _vllm(config.policy, unpublished=True)
        else:
            policy = LocalPolicy(_model(config, config.model.path))
        resources.push_async_callback(policy.close)
        yield await _rollouts(config, policy, tokenizer, control_tokens(tokenizer, config.model.trigger), resources)


async def weight_label(config: Config) -> str:
    """Which weights `open_rollouts` samples from: the server's own label, or "local". Raises `PolicyUnavailable`."""
    if config.policy.kind == "local":
        return "local"
    control = VLLMControl(config.policy.url, api_key=_vllm_key(config.policy))
    try:
        return await control.weight_label()
    except RouteMissing:  # then nobody can have published to it
        return UNPUBLISHED
    finally:
        await control.close()


@asynccontextmanager
async def open_training(config: Config, *, resume: bool, progress: Progress) -> AsyncIterator[Training]:
    """A run at its start, or, to `resume`, at its newest checkpoint. Raises `ConfigError` rather than mix two runs."""
    checkpoints = config.output / "checkpoints"
    newest = checkpoint.latest(checkpoints)
    if not resume and (newest or (config.output / "metrics.jsonl").exists()):
        raise ConfigError(f"output: {config.output} holds a run already: resume it, or name another folder")
    start = checkpoint.position(newest) if newest else checkpoint.Position()
    tasks = _training_tasks(config)  # before anything is written: a typo must not occupy the folder
    suite = load_suite(config.eval) if config.eval.suite else None
    tokenizer = load_tokenizer(config.model.path)
    tokens = control_tokens(tokenizer, config.model.trigger)
    kept = config.model_dump(mode="json")
    async with AsyncExitStack() as resources:
        loggers = resources.enter_context(open_loggers(config.log, config.output, kept))
        with progress.waiting("loading the model"):
            model = _starting_model(config, newest)
        policy, publisher = _policy_and_publisher(config, model, tokenizer)
        resources.push_async_callback(policy.close)
        resources.push_async_callback(publisher.close)
        learner = _learner(Leader if ranks() > 1 else Learner, config, model, tokens, newest)
        if isinstance(learner, Leader):
            resources.callback(learner.dismiss)
        rollouts = await _rollouts(config, policy, tokenizer, tokens, resources)
        log = resources.enter_context(RunLog(config.output, rollouts.renderer, steps_done=start.step, loggers=loggers))

        async def evaluate_now() -> Metrics:
            return await _evaluation_metrics(suite, rollouts, seed=config.eval.seed) if suite else {}

        stream = TaskStream(tasks, seed=config.train.seed, position=start.stream_position)
        yield Training(
            supply=Supply(
                stream,
                rollouts,
                config.collect,
                progress,
                seed=config.train.seed,
                max_staleness=config.train.max_staleness,
                patience_s=config.train.outage_patience_s,
                ahead=checkpoint.sampled_ahead(newest) if newest else None,
            ),
            learner=learner,
            publisher=publisher,
            tokenizer=tokenizer,
            tokens=tokens,
            log=log,
            progress=progress,
            checkpoints=checkpoints,
            evaluate=evaluate_now,
            alarm=RewardAlarm(config.alarm),
            config=kept,
            step=start.step,
        )


def serve_training(config: Config) -> None:
    """What every process but the first does when several train (`distributed`), until the first is done."""
    tokens = control_tokens(load_tokenizer(config.model.path), config.model.trigger)
    newest = checkpoint.latest(config.output / "checkpoints")
    serve(_learner(Learner, config, _starting_model(config, newest), tokens, newest))


def _starting_model(config: Config, newest: Path | None) -> PreTrainedModel:
    """The newest checkpoint's, but with LoRA, since that is merged: adapters go beside the same weights as before."""
    return _model(config, config.model.path if newest is None or config.lora.rank else newest)


def _learner(
    kind: type[Learner], config: Config, model: PreTrainedModel, tokens: ControlTokens, newest: Path | None
) -> Learner:
    """At the newest checkpoint, if there is one. The model is taken over: a local policy has its copy by now."""
    learner = kind(
        model,
        tokens,
        config.objective,
        config.optimiser,
        temperature=config.rollout.temperature,
        lora=config.lora,
        compute_dtype=config.model.compute_dtype,
        activation_checkpointing=config.model.activation_checkpointing,
        device=config.model.device,
    )
    if newest:
        checkpoint.restore(newest, learner)
    return learner


def _model(config: Config, path: Path) -> PreTrainedModel:
    # Several processes deal the weights over their GPUs themselves; whole they may not fit on one.
    return load_model(path, dtype=config.model.dtype, device=config.model.device if ranks() == 1 else "cpu")


def _vllm(options: PolicyOptions, *, unpublished: bool) -> VLLMPolicy:
    return VLLMPolicy(
        options.url,
        options.model,
        timeout_s=options.timeout_s,
        api_key=_vllm_key(options),
        unpublished=unpublished,
    )


def _vllm_key(options: PolicyOptions) -> str | None:
    return _revealed(options.api_key) or os.environ.get(VLLM_KEY_VARIABLE) or None


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _policy_and_publisher(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[Policy, WeightPublisher]:
    options = config.policy
    if options.kind == "local":
        local = LocalPolicy(model)
        return local, LocalPublisher(local)
    served = _vllm(options, unpublished=False)
    publisher = ServedPublisher(
        served,
        VLLMControl(options.url, api_key=_vllm_key(options), timeout_s=options.transfer_timeout_s),
        _transfer(options, config.model.device),
        probe_ids=Random(0).choices(range(len(tokenizer)), k=PROBE_TOKENS),
        max_difference=options.max_difference,
        timeout_s=options.transfer_timeout_s,
        recovery_s=options.recovery_s,
    )
    return served, publisher


def _transfer(options: PolicyOptions, device: str) -> Transfer:
    match options.transfer:
        case "file":
            return FileTransfer(options.weights_dir)
        case "gloo":
            return Broadcast(partial(GlooGroup, host=options.rendezvous_host, timeout_s=options.transfer_timeout_s))
        case "nccl":
            return Broadcast(partial(NCCLGroup, device=torch.device(device)), from_gpu=True)
        case "ipc":
            return IPCTransfer()


async def _rollouts(
    config: Config,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    tokens: ControlTokens,
    resources: AsyncExitStack,
) -> Rollouts:
    """Raises `PolicyUnavailable` or `CellarError` when one of the services is not there or not as it has to be, and
    `ConfigError` for rollouts that a local model's context has no room for."""
    options = config.rollout.options(tokens)
    if isinstance(policy, VLLMPolicy):
        await policy.check(options.sampling)
    elif isinstance(policy, LocalPolicy) and options.max_context_tokens > policy.context_tokens:
        raise ConfigError(
            f"rollout.max_context_tokens: {options.max_context_tokens} exceed the model's context of"
            f" {policy.context_tokens}"
        )
    cellar = await resources.enter_async_context(
        AsyncCellar(config.executor.url, api_key=_revealed(config.executor.api_key))
    )
    await cellar.info()
    return Rollouts(
        policy=policy,
        cellar=cellar,
        renderer=Renderer(tokenizer, config.rendering),
        grader=await resources.enter_async_context(Grader(workers=GRADERS)),
        options=options,
        concurrency=config.rollout.concurrency,
        reward=config.reward,
    )


def _training_tasks(config: Config) -> list[Task]:
    tasks = load_tasks(config.tasks.path, limit=config.tasks.limit)
    if not tasks:
        raise ConfigError(f"tasks.path: {config.tasks.path} holds no task")
    return tasks


async def _evaluation_metrics(suite: Suite, rollouts: Rollouts, *, seed: int) -> Metrics:
    samples = await evaluate(suite.sets, rollouts, seed=seed)
    return report_metrics(report(suite, samples, seed=seed))

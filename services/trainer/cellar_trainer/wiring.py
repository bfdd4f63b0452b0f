"""From a configuration to live objects: the one place that knows which implementation stands behind a protocol."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

from pydantic import SecretStr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cellar_client import AsyncCellar
from cellar_trainer import checkpoint
from cellar_trainer.collect import Rollouts, TaskStream
from cellar_trainer.config import Config, ConfigError
from cellar_trainer.evaluate import evaluate
from cellar_trainer.learner import Learner
from cellar_trainer.metrics import RunLog
from cellar_trainer.model import ControlTokens, control_tokens, load_model, load_tokenizer
from cellar_trainer.policy.local import LocalPolicy
from cellar_trainer.policy.protocol import Policy
from cellar_trainer.policy.vllm import VLLMPolicy
from cellar_trainer.progress import Progress
from cellar_trainer.rendering import Renderer
from cellar_trainer.rewards import Grader
from cellar_trainer.tasks import load_tasks
from cellar_trainer.train import Training
from cellar_trainer.types import Metrics, Task
from cellar_trainer.weights import FilePublisher, LocalPublisher, WeightPublisher

PROBE_TOKENS = 64
GRADERS = 2


@asynccontextmanager
async def open_rollouts(config: Config) -> AsyncIterator[Rollouts]:
    """For playing without training. A policy served by vLLM is taken as it is served; a local one is `model.path`."""
    tokenizer = load_tokenizer(config.model.path)
    async with AsyncExitStack() as resources:
        if config.policy.kind == "vllm":
            policy: Policy = _vllm(config)
        else:
            policy = LocalPolicy(_model(config, config.model.path))
        resources.push_async_callback(policy.close)
        yield await _rollouts(config, policy, tokenizer, control_tokens(tokenizer, config.model.trigger), resources)


@asynccontextmanager
async def open_training(config: Config, *, resume: bool, progress: Progress) -> AsyncIterator[Training]:
    """A run at its start, or, to `resume`, at its newest checkpoint. Raises `ConfigError` rather than mix two runs."""
    checkpoints = config.output / "checkpoints"
    newest = checkpoint.latest(checkpoints)
    if not resume and (config.output / "metrics.jsonl").exists():
        raise ConfigError(f"output: {config.output} holds a run already: resume it, or name another folder")
    start = checkpoint.position(newest) if newest else checkpoint.Position()
    tokenizer = load_tokenizer(config.model.path)
    tokens = control_tokens(tokenizer, config.model.trigger)
    with progress.waiting("loading the model"):
        model = _model(config, newest or config.model.path)
    learner = Learner(model, tokens, config.objective, config.optimiser, temperature=config.rollout.temperature)
    if newest:
        checkpoint.restore(newest, learner)
    async with AsyncExitStack() as resources:
        policy, publisher = _policy_and_publisher(config, model, tokenizer)
        resources.push_async_callback(policy.close)
        resources.push_async_callback(publisher.close)
        rollouts = await _rollouts(config, policy, tokenizer, tokens, resources)
        log = resources.enter_context(RunLog(config.output, rollouts.renderer, steps_done=start.step))
        evaluation_tasks = load_tasks(config.eval.path, limit=config.eval.limit) if config.eval.path else []

        async def evaluate_now() -> Metrics:
            return await _evaluation_metrics(evaluation_tasks, rollouts, config)

        yield Training(
            rollouts=rollouts,
            stream=TaskStream(_training_tasks(config), seed=config.train.seed, position=start.stream_position),
            learner=learner,
            publisher=publisher,
            tokenizer=tokenizer,
            tokens=tokens,
            log=log,
            progress=progress,
            checkpoints=checkpoints,
            evaluate=evaluate_now,
            config=config.model_dump(mode="json"),
            step=start.step,
        )


def _model(config: Config, path: Path) -> PreTrainedModel:
    return load_model(path, dtype=config.model.dtype, device=config.model.device)


def _vllm(config: Config) -> VLLMPolicy:
    section = config.policy
    return VLLMPolicy(section.url, section.model, timeout_s=section.timeout_s, api_key=_revealed(section.api_key))


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _policy_and_publisher(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[Policy, WeightPublisher]:
    if config.policy.kind == "local":
        local = LocalPolicy(model)
        return local, LocalPublisher(local)
    served = _vllm(config)
    publisher = FilePublisher(
        config.policy.url,
        served,
        probe_ids=Random(0).choices(range(len(tokenizer)), k=PROBE_TOKENS),
        max_difference=config.policy.max_difference,
        directory=config.policy.weights_dir,
        timeout_s=config.policy.timeout_s,
    )
    return served, publisher


async def _rollouts(
    config: Config,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    tokens: ControlTokens,
    resources: AsyncExitStack,
) -> Rollouts:
    """Raises `PolicyUnavailable` or `CellarError` when one of the services is not there or not as it has to be."""
    options = config.rollout.options(tokens)
    if isinstance(policy, VLLMPolicy):
        await policy.check(options.sampling)
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
    )


def _training_tasks(config: Config) -> list[Task]:
    tasks = load_tasks(config.tasks.path, limit=config.tasks.limit)
    if not tasks:
        raise ConfigError(f"tasks.path: {config.tasks.path} holds no task")
    return tasks


async def _evaluation_metrics(tasks: Sequence[Task], rollouts: Rollouts, config: Config) -> Metrics:
    if not tasks:
        return {}
    evaluation = await evaluate(tasks, rollouts, samples=config.eval.samples, seed=config.eval.seed)
    return {f"eval/{name}": value for name, value in evaluation.report["overall"].items() if value is not None}

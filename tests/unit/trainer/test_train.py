"""The loop: what is learned from, and that a resumed run is the same run."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch

from cellar_trainer import checkpoint
from cellar_trainer.learning.learner import Learner, OptimiserOptions
from cellar_trainer.learning.model import control_tokens, load_model
from cellar_trainer.learning.objectives import ObjectiveOptions
from cellar_trainer.policy.local import LocalPolicy
from cellar_trainer.rewards.grader import Grade, Grader, Outcome
from cellar_trainer.rewards.shaping import RewardOptions
from cellar_trainer.rollouts.collect import CollectOptions, Rollouts, TaskStream
from cellar_trainer.rollouts.rendering import Renderer, RenderingOptions
from cellar_trainer.rollouts.rollout import RolloutFailed, RolloutOptions
from cellar_trainer.rollouts.supply import Supply
from cellar_trainer.telemetry.metrics import RunLog
from cellar_trainer.telemetry.progress import Progress
from cellar_trainer.train import Training, TrainOptions, train
from cellar_trainer.types import Completion, Metrics, Sampling, StopReason, Task
from cellar_trainer.weights import LocalPublisher, PublishFailed, WeightSource
from tests.scripted import InProcessCellar
from tests.tiny_model import TRIGGER, save_tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TOKENS = control_tokens(TOKENIZER, TRIGGER)
RENDERER = Renderer(TOKENIZER, RenderingOptions(prompt="{problem}", chat_template=False))
TASKS = [Task(str(i), f"{i}?", "1") for i in range(3)]
COLLECT = CollectOptions(tasks=2, siblings=3)


class EverySecond(Grader):
    """Calls every second answer correct, so that an untrained model has something to learn from."""

    async def grade(self, answer: str | None, expected: str) -> Grade:
        outcome: Outcome = "wrong" if self.counts.total() % 2 else "correct"
        self.counts[outcome] += 1
        return Grade(outcome == "correct", outcome)


async def no_evaluation() -> Metrics:
    return {}


def training(folder: Path, model_path: Path, objective: ObjectiveOptions | None = None) -> Training:
    """A run in `folder`, at its newest checkpoint if it has one, as `wiring` would open it."""
    newest = checkpoint.latest(folder / "checkpoints")
    start = checkpoint.position(newest) if newest else checkpoint.Position()
    model = load_model(newest or model_path, dtype="float32", device="cpu")
    objective = objective or ObjectiveOptions()
    learner = Learner(model, TOKENS, objective, OptimiserOptions(1e-3, warmup_steps=3), temperature=1.0)
    if newest:
        checkpoint.restore(newest, learner)
    policy = LocalPolicy(model)
    stops = (TOKENS.trigger_id, TOKENS.eos_id)
    options = RolloutOptions(sampling=Sampling(6, stop_token_ids=stops, trigger_id=TOKENS.trigger_id))
    # An untrained model runs out of tokens: that is to count.
    rollouts = Rollouts(
        policy,
        cast(Any, InProcessCellar()),
        RENDERER,
        EverySecond(),
        options,
        concurrency=1,
        reward=RewardOptions(overlong="score"),
    )
    ahead = checkpoint.sampled_ahead(newest) if newest else None
    return Training(
        supply=Supply(
            TaskStream(TASKS, seed=0, position=start.stream_position), rollouts, COLLECT, Progress(), ahead=ahead
        ),
        learner=learner,
        publisher=LocalPublisher(policy),
        tokenizer=TOKENIZER,
        tokens=TOKENS,
        log=RunLog(folder, RENDERER, steps_done=start.step),
        progress=Progress(),
        checkpoints=folder / "checkpoints",
        evaluate=no_evaluation,
        step=start.step,
    )


async def run(
    folder: Path, model_path: Path, *, steps: int, objective: ObjectiveOptions | None = None, **changes: Any
) -> Training:
    opened = training(folder, model_path, objective)
    unmasked: frozenset[StopReason] = frozenset()
    with opened.log:
        await train(opened, TrainOptions(steps=steps, masked_stop_reasons=unmasked, **changes))
    return opened


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in rows]


@pytest.mark.parametrize(("name", "overlap"), [("ih_grpo", "off"), ("eh_grpo", "off"), ("ih_grpo", "between")])
async def test_a_run_that_is_killed_and_resumed_is_the_run_that_was_not_bit_for_bit(
    tmp_path: Path, name: Literal["ih_grpo", "eh_grpo"], overlap: Literal["off", "between"]
) -> None:
    objective = ObjectiveOptions(name=name)
    model_path = save_tiny_model(tmp_path / "model")
    whole = await run(tmp_path / "whole", model_path, steps=4, objective=objective, overlap=overlap)

    halves: dict[str, Any] = {"objective": objective, "overlap": overlap, "checkpoint_every": 2, "checkpoints_kept": 9}
    await run(tmp_path / "halves", model_path, steps=4, **halves)
    shutil.rmtree(tmp_path / "halves/checkpoints/step-000004")  # as if killed in step 4, after the checkpoint of step 2
    torch.manual_seed(99)
    resumed = await run(tmp_path / "halves", model_path, steps=4, objective=objective, overlap=overlap)

    for key, weight in whole.learner.model.state_dict().items():
        assert torch.equal(weight, resumed.learner.model.state_dict()[key]), key
    assert whole.supply.stream.position == resumed.supply.stream.position
    expected, actual = lines(tmp_path / "whole/metrics.jsonl"), lines(tmp_path / "halves/metrics.jsonl")
    assert [row["step"] for row in actual] == [1, 2, 3, 4]
    assert untimed(actual) == untimed(expected)
    assert lines(tmp_path / "whole/trajectories.jsonl") == lines(tmp_path / "halves/trajectories.jsonl")


async def test_a_step_is_logged_with_what_the_policy_did_and_which_weights_did_it(tmp_path: Path) -> None:
    await run(tmp_path, save_tiny_model(tmp_path / "model"), steps=2)
    first, second = lines(tmp_path / "metrics.jsonl")
    expected = {"step", "reward_mean", "deferral_rate", "runs_per_trajectory", "hierarchical_coefficient"}
    expected |= {
        "policy_staleness",
        "loss",
        "grad_norm",
        "mismatch",
        "dropped/rollouts_policy",
        "alarm/constant",
        "collect_s",
        "learn_s",
    }
    assert expected <= first.keys()
    assert (first["policy_staleness"], second["policy_staleness"]) == (0, 0)
    assert 0 < first["hierarchical_coefficient"] < 1
    assert first["mismatch"] < 1e-5, "the first step learns from the very policy that sampled"
    versions = {(row["step"], *row["policy_versions"]) for row in lines(tmp_path / "trajectories.jsonl")}
    assert versions == {(1, 0, 0), (2, 1, 1)}


async def test_training_moves_the_weights_and_the_policy_follows(tmp_path: Path) -> None:
    model_path = save_tiny_model(tmp_path / "model")
    before = load_model(model_path, dtype="float32", device="cpu").state_dict()
    after = await run(tmp_path / "run", model_path, steps=1)
    assert not torch.equal(before["lm_head.weight"], after.learner.model.state_dict()["lm_head.weight"])
    policy = cast(LocalPolicy, after.supply.rollouts.policy)
    sampled = await policy.generate([1, 2], Sampling(1, seed=0))
    assert sampled.policy_versions == (1,)
    fresh = await LocalPolicy(after.learner.model, 1).generate([1, 2], Sampling(1, seed=0))
    assert sampled == fresh


async def test_evaluation_and_checkpoints_come_when_they_are_due(tmp_path: Path) -> None:
    model_path = save_tiny_model(tmp_path / "model")
    opened = training(tmp_path / "run", model_path)

    async def evaluate() -> Metrics:
        return {"eval/avg@1": 0.25}

    opened.evaluate = evaluate
    options = TrainOptions(steps=5, evaluate_every=2, checkpoint_every=2, checkpoints_kept=2)
    with opened.log:
        await train(opened, options)
    rows = lines(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in rows if "eval/avg@1" in row] == [2, 4]
    assert [path.name for path in sorted(opened.checkpoints.iterdir())] == ["step-000004", "step-000005"]


async def test_what_was_learned_is_kept_when_the_model_server_is_gone_for_good(tmp_path: Path) -> None:
    opened = training(tmp_path / "run", save_tiny_model(tmp_path / "model"))

    class Gone(LocalPublisher):
        async def publish(self, source: WeightSource, version: int) -> Metrics:
            if version == 2:
                raise PublishFailed("gone")
            return await super().publish(source, version)

    opened.publisher = Gone(cast(LocalPolicy, opened.supply.rollouts.policy))
    with opened.log, pytest.raises(PublishFailed):
        await train(opened, TrainOptions(steps=5))
    assert [row["step"] for row in lines(tmp_path / "run/metrics.jsonl")] == [1, 2]
    newest = checkpoint.latest(opened.checkpoints)
    assert newest is not None
    assert checkpoint.position(newest).step == 2


async def test_training_goes_on_when_nobody_can_be_asked_how_well_it_goes(tmp_path: Path) -> None:
    opened = training(tmp_path / "run", save_tiny_model(tmp_path / "model"))

    async def evaluate() -> Metrics:
        raise RolloutFailed("the executor is away", "executor")

    opened.evaluate = evaluate
    with opened.log:
        await train(opened, TrainOptions(steps=2, evaluate_every=1))
    assert [row["step"] for row in lines(tmp_path / "run/metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize(("overlap", "versions"), [("off", [0, 1, 2]), ("between", [0, 0, 1])])
async def test_with_overlap_a_step_learns_from_weights_one_step_old(
    tmp_path: Path, overlap: Literal["off", "between"], versions: list[int]
) -> None:
    await run(tmp_path, save_tiny_model(tmp_path / "model"), steps=3, overlap=overlap)
    found = {(row["step"], *row["policy_versions"]) for row in lines(tmp_path / "trajectories.jsonl")}
    assert found == {(step, version, version) for step, version in enumerate(versions, start=1)}


async def test_in_flight_the_new_weights_are_published_before_what_is_sampled_ahead_is_finished(tmp_path: Path) -> None:
    opened = training(tmp_path / "run", save_tiny_model(tmp_path / "model"))
    policy = cast(LocalPolicy, opened.supply.rollouts.policy)
    published = asyncio.Event()
    sample = policy.generate

    async def sample_ahead_when_published(token_ids: Sequence[int], sampling: Sampling) -> Completion:
        if opened.supply.stream.position > COLLECT.tasks:
            await published.wait()
        return await sample(token_ids, sampling)

    class Watched(LocalPublisher):
        async def publish(self, source: WeightSource, version: int) -> Metrics:
            metrics = await super().publish(source, version)
            if version == 1:
                published.set()
            return metrics

    policy.generate = sample_ahead_when_published  # type: ignore[method-assign]
    opened.publisher = Watched(policy)
    with opened.log:
        await asyncio.wait_for(train(opened, TrainOptions(steps=2, overlap="in_flight")), 60)
    versions = {(row["step"], *row["policy_versions"]) for row in lines(tmp_path / "run/trajectories.jsonl")}
    assert versions == {(1, 0, 0), (2, 1, 1)}


@pytest.mark.parametrize("minibatches", [1, 2])
def test_learning_from_nothing_changes_nothing(tmp_path: Path, minibatches: int) -> None:
    model = load_model(save_tiny_model(tmp_path), dtype="float32", device="cpu")
    options = OptimiserOptions(1e-2, minibatches=minibatches)
    learner = Learner(model, TOKENS, ObjectiveOptions(), options, temperature=1.0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert learner.learn([]) == {}
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())

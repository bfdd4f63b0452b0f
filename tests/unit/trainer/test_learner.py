"""One optimiser step: however its tokens are cut into batches and padded, the gradient is the objective's."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cellar_trainer.learning.learner import TYPICAL_WEIGHT, Learner, OptimiserOptions
from cellar_trainer.learning.lora import LoraOptions
from cellar_trainer.learning.model import ModelUnusable, control_tokens, hidden_states, load_model, score
from cellar_trainer.learning.objectives import ObjectiveOptions
from cellar_trainer.learning.objectives.eh_grpo import gate_of
from cellar_trainer.learning.objectives.options import BASES
from cellar_trainer.learning.packing import Batch, Example, pack
from cellar_trainer.types import Segment, SegmentKind, Task, Trajectory
from tests.tiny_model import TRIGGER, tiny_model, tiny_tokenizer

TOKENS = control_tokens(tiny_tokenizer(), TRIGGER)
OBJECTIVES: list[dict[str, Any]] = [
    *({"name": name} for name in BASES),
    {"name": "eh_grpo", "base": "grpo"},
    {"name": "ih_grpo"},
    {"name": "ih_grpo", "base": "gspo", "f": "first", "mask": "fence", "respect_clip": False},
]


def learner(objective: ObjectiveOptions, **changes: Any) -> Learner:
    return Learner(tiny_model().double(), TOKENS, objective, OptimiserOptions(1e-3, **changes), temperature=1.0)


@cache
def trajectory(seed: int, lengths: tuple[int, ...]) -> Trajectory:
    """Turns of these lengths, each but the last ended by the trigger, with log-probabilities near the tiny model's."""
    rng = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(200, (count,), generator=rng).tolist())

    segments = [Segment(SegmentKind.PROMPT, ids(3))]
    for number, length in enumerate(lengths):
        token_ids = ids(length - 1) + (TOKENS.trigger_id if number < len(lengths) - 1 else TOKENS.eos_id,)
        logprobs = tuple((-6 - torch.rand(length, generator=rng)).tolist())
        segments += [Segment(SegmentKind.SAMPLED, token_ids, logprobs, logprobs, (0,) * length)]
        segments += [Segment(SegmentKind.OBSERVATION, ids(2))]
    return Trajectory(Task(str(seed), "", ""), segments)


def examples(shapes: list[list[int]]) -> list[Example]:
    rows = [trajectory(seed, tuple(lengths)) for seed, lengths in enumerate(shapes)]
    return [
        Example(row, (-1.0) ** n * (n + 1), near_fence=[i % 3 == 0 for i in range(len(row.token_ids))])
        for n, row in enumerate(rows)
    ]


def packed(rows: list[Example]) -> list[Batch]:
    return pack(rows, token_budget=10_000, pad_id=TOKENS.pad_id)


def gradients(objective: ObjectiveOptions, batches: list[Batch]) -> dict[str, Tensor]:
    """Of one optimiser step."""
    return gradients_of(learner(objective, max_grad_norm=1e9), batches)


def gradients_of(trained: Learner, batches: list[Batch]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in trained.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: found.__setitem__(name, p.grad.clone()))
    trained.learn(batches)
    return found


@pytest.mark.parametrize("given_", OBJECTIVES, ids=str)
@settings(deadline=None, max_examples=5)
@given(
    shapes=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=2, max_size=5),
    budget=st.integers(1, 40),
)
def test_padded_in_one_batch_or_each_row_by_itself_the_gradient_is_the_same(
    given_: dict[str, Any], shapes: list[list[int]], budget: int
) -> None:
    objective = ObjectiveOptions.model_validate(given_)
    rows = examples(shapes)

    whole = gradients(objective, pack(rows, token_budget=10_000, pad_id=TOKENS.pad_id))
    parts = gradients(objective, pack(rows, token_budget=budget, pad_id=TOKENS.pad_id))

    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("given_", OBJECTIVES, ids=str)
def test_positions_that_are_not_trained_on_have_exactly_no_gradient(given_: dict[str, Any]) -> None:
    trained = learner(ObjectiveOptions.model_validate(given_))
    (batch,) = pack(examples([[4, 3], [2], [1, 5, 2]]), token_budget=10_000, pad_id=TOKENS.pad_id)
    captured: list[Tensor] = []

    def capture(module: Any, inputs: Any, outputs: Any) -> None:
        outputs.last_hidden_state.retain_grad()
        captured.append(outputs.last_hidden_state)

    trained.model.base_model.register_forward_hook(capture)
    trained.learn([batch])

    (hidden_BTD,) = captured
    assert hidden_BTD.grad is not None
    mask_BT = batch.loss_mask_BT.bool()
    assert (hidden_BTD.grad[~mask_BT] == 0).all()
    assert hidden_BTD.grad[mask_BT].any()


def test_the_loss_of_a_step_by_hand() -> None:
    # On policy the ratio is 1, so a token's loss is -A: with 3 tokens of A = 1 and 1 of A = -2
    rows = [on_policy(row, advantage) for row, advantage in zip(examples([[3], [1]]), (1.0, -2.0), strict=True)]
    expected = {"dapo": (-3 + 2) / 4, "grpo": (-1 + 2) / 2, "gspo": (-1 + 2) / 2, "dr_grpo": (-3 + 2) / 2 / 1000}
    for name, loss in expected.items():
        metrics = learner(ObjectiveOptions.model_validate({"name": name})).learn(
            pack(rows, token_budget=4, pad_id=TOKENS.pad_id)
        )
        assert metrics["policy_loss"] == metrics["loss"] == pytest.approx(loss, abs=1e-5)
        assert metrics["hierarchical_loss"] == 0
        assert metrics["tokens_trained"] == 4


def on_policy(example: Example, advantage: float) -> Example:
    """The same with the log-probabilities that the tiny model itself gives."""
    model, ids = tiny_model().double(), example.trajectory.token_ids
    inputs_BT = torch.tensor([ids])
    logits_TV = hidden_states(model, inputs_BT, torch.arange(len(ids))[None])[0] @ model.lm_head.weight.T
    logprobs = [0.0, *logits_TV[:-1].log_softmax(-1).gather(-1, inputs_BT[0, 1:, None])[:, 0].tolist()]
    segments, start = [], 0
    for segment in example.trajectory.segments:
        stop = start + len(segment.token_ids)
        values = tuple(logprobs[start:stop]) if segment.kind is SegmentKind.SAMPLED else ()
        segments.append(Segment(segment.kind, segment.token_ids, values, values, segment.policy_versions))
        start = stop
    return Example(Trajectory(example.trajectory.task, segments), advantage)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_reported_losses_are_means_over_optimiser_steps(minibatches: int) -> None:
    row = on_policy(examples([[3]])[0], 1.0)
    batches = pack([row] * 4, token_budget=1, pad_id=TOKENS.pad_id)
    frozen = Learner(
        tiny_model().double(),
        TOKENS,
        ObjectiveOptions(f="none"),
        OptimiserOptions(1e-12, minibatches=minibatches),
        temperature=1.0,
    )

    metrics = frozen.learn(batches)

    assert metrics["policy_loss"] == pytest.approx(-1, abs=1e-5)
    assert metrics["loss"] == metrics["policy_loss"] + metrics["hierarchical_loss"]
    assert metrics["hierarchical_loss"] != 0
    assert metrics["tokens_trained"] == 12


def test_the_explicit_gate_is_trained_with_the_model_and_the_triggers_column_is_not() -> None:
    trained = learner(ObjectiveOptions(name="eh_grpo"))
    gate = gate_of(trained.model)
    assert gate is not None
    bias, head = gate.bias.item(), trained.model.get_output_embeddings().weight.detach().clone()

    trained.learn(pack(examples([[4, 3], [2]]), token_budget=100, pad_id=TOKENS.pad_id))

    moved_V = (trained.model.get_output_embeddings().weight != head).any(-1)
    assert gate.bias.item() != bias
    assert not moved_V[TOKENS.trigger_id]
    assert moved_V.sum() > 100


def test_a_model_with_a_gate_is_not_trained_as_if_it_had_none() -> None:
    gated = learner(ObjectiveOptions(name="eh_grpo")).model
    with pytest.raises(ModelUnusable, match="ih_grpo would not train"):
        Learner(gated, TOKENS, ObjectiveOptions(), OptimiserOptions(), temperature=1.0)


def tiny_learner(*, options: OptimiserOptions | None = None, **changes: Any) -> Learner:
    return Learner(
        tiny_model(), TOKENS, ObjectiveOptions(), options or OptimiserOptions(1e-3), temperature=1.0, **changes
    )


def test_activations_that_are_computed_again_give_the_same_gradients_bit_for_bit() -> None:
    batches = packed(examples([[4, 3], [2], [1, 5, 2]]))
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    found, sizes = [], []
    for activation_checkpointing in (False, True):
        trained = tiny_learner(activation_checkpointing=activation_checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            found.append(gradients_of(trained, batches))
        sizes.append(sum(kept))
        kept.clear()

    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())
    assert sizes[1] < sizes[0] / 2


def test_with_bfloat16_arithmetic_weights_gradients_and_moments_stay_float32() -> None:
    batches = packed(examples([[4, 3], [2], [1, 5, 2]]))
    exact, rough = (tiny_learner(compute_dtype=dtype) for dtype in ("float32", "bfloat16"))
    inputs: set[torch.dtype] = set()
    rough.model.model.layers[0].mlp.down_proj.register_forward_hook(lambda m, args, out: inputs.add(out.dtype))

    expected, actual = gradients_of(exact, batches), gradients_of(rough, batches)

    assert inputs == {torch.bfloat16}
    assert {gradient.dtype for gradient in actual.values()} == {torch.float32}
    for name, gradient in expected.items():
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), actual[name].flatten(), dim=0) > 0.98, name
        assert not torch.equal(gradient, actual[name])
    moments = rough.state_dict()["optimiser"]["state"].values()
    assert {value.dtype for state in moments for value in state.values()} == {torch.float32}
    assert rough.score([3, 1, 4]) == pytest.approx(exact.score([3, 1, 4]), abs=0.2)


@pytest.mark.parametrize(
    ("dtype", "learning_rate", "warns"),
    [("bfloat16", 1e-6, True), ("float16", 1e-6, True), ("bfloat16", 1e-3, False), ("float32", 1e-9, False)],
)
def test_updates_that_half_precision_weights_would_lose_are_warned_of(
    dtype: str, learning_rate: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model().to(getattr(torch, dtype))
    Learner(model, TOKENS, ObjectiveOptions(), OptimiserOptions(learning_rate), temperature=1.0)
    assert ("are rounded away" in caplog.text) is warns


def test_a_step_below_what_was_warned_of_is_indeed_lost() -> None:
    weight = torch.full((), TYPICAL_WEIGHT, dtype=torch.bfloat16)
    assert torch.equal(weight - 0.2 * TYPICAL_WEIGHT * torch.finfo(torch.bfloat16).eps, weight)
    assert not torch.equal(weight - 2 * TYPICAL_WEIGHT * torch.finfo(torch.bfloat16).eps, weight)


def test_scores_are_the_log_probabilities_of_the_model() -> None:
    trained, ids = tiny_learner(), [3, TOKENS.trigger_id, 4, 1]
    assert trained.score(ids) == pytest.approx(score(tiny_model(), ids), abs=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_and_what_is_handed_out_is_the_model(tmp_path: Path, tied: bool) -> None:
    trained = Learner(tiny_model(tied=tied), TOKENS, ObjectiveOptions(), OptimiserOptions(1e-3), temperature=1.0)
    trained.learn(packed(examples([[4, 3], [2]])))
    trained.save_model(tmp_path)
    loaded = load_model(tmp_path, dtype="float32", device="cpu")
    weights = dict(trained.weights())
    assert weights.keys() == dict(loaded.named_parameters()).keys()
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in weights.items())
    assert not any(weight.requires_grad for weight in weights.values())


def test_the_learning_rate_that_is_reported_is_the_one_that_was_used() -> None:
    trained = tiny_learner(options=OptimiserOptions(1e-3, warmup_steps=3))
    rates = [trained.learn(packed(examples([[4, 3]])))["learning_rate"] for _ in range(5)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])


def test_a_resumed_run_has_the_options_that_it_is_given_now() -> None:
    batches = packed(examples([[4, 3], [2]]))
    first = tiny_learner(options=OptimiserOptions(1e-3, warmup_steps=3))
    first.learn(batches)
    changed = OptimiserOptions(1e-4, betas=(0.8, 0.9), weight_decay=0.5, warmup_steps=1)
    resumed = tiny_learner(options=changed)
    resumed.load_state_dict(first.state_dict())

    assert [resumed.learn(batches)["learning_rate"] for _ in range(2)] == pytest.approx([1e-4, 1e-4])
    (group,) = resumed.state_dict()["optimiser"]["param_groups"]
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.8, 0.9), 0.5, 1e-4)


@pytest.mark.parametrize(("saved", "given_"), [(4, 8), (4, 0), (0, 4)])
def test_a_run_is_not_resumed_with_adapters_of_another_rank(saved: int, given_: int) -> None:
    state = tiny_learner(lora=LoraOptions(rank=saved)).state_dict()
    with pytest.raises(ModelUnusable, match=f"lora.rank: the checkpoint has adapters of rank {saved}, not {given_}"):
        tiny_learner(lora=LoraOptions(rank=given_)).load_state_dict(state)


def test_a_run_is_not_resumed_with_adapters_elsewhere() -> None:
    state = tiny_learner(lora=LoraOptions(rank=4)).state_dict()
    with pytest.raises(ModelUnusable, match=r"lora\.target_modules"):
        tiny_learner(lora=LoraOptions(rank=4, target_modules=("q_proj",))).load_state_dict(state)

"""LoRA: what is sampled and saved is the model with its adapters merged, and nothing but adapters is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cellar_trainer.learning.learner import Learner, OptimiserOptions
from cellar_trainer.learning.lora import LoraOptions, add_adapters
from cellar_trainer.learning.model import ModelUnusable, control_tokens, score
from cellar_trainer.learning.objectives import ObjectiveOptions
from cellar_trainer.learning.objectives.eh_grpo import gate_of
from cellar_trainer.policy.local import LocalPolicy
from tests.tiny_model import TRIGGER, tiny_model, tiny_tokenizer
from tests.unit.trainer.test_learner import examples, packed

TOKENS = control_tokens(tiny_tokenizer(), TRIGGER)
PROBE = [3, 1, 4, 1, 5]
LORA = LoraOptions(rank=4)


def learner(*, tied: bool = False, lora: LoraOptions = LORA, **objective: Any) -> Learner:
    options = OptimiserOptions(1e-2, weight_decay=0.1, warmup_steps=2)
    given = ObjectiveOptions.model_validate(objective)
    return Learner(tiny_model(tied=tied), TOKENS, given, options, temperature=1.0, lora=lora)


def learn(trained: Learner, *steps: int) -> Learner:
    for step in steps:
        trained.learn(packed(examples([[4, 3], [2 + step]])))
    return trained


@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_are_the_adapted_model_under_the_names_it_had(tied: bool) -> None:
    trained = learn(learner(tied=tied), 0, 1)
    plain = tiny_model(tied=tied)
    before = score(plain, PROBE)

    LocalPolicy(plain).load(trained.weights(), 1)  # the names are the model's, every one of them
    merged = tiny_model(tied=tied)
    merged.load_state_dict(dict(trained.weights()), strict=not tied)

    assert score(merged, PROBE) == pytest.approx(trained.score(PROBE), abs=1e-5)
    assert score(plain, PROBE) == before
    assert max(abs(a - b) for a, b in zip(trained.score(PROBE), before, strict=True)) > 1e-2


def test_merging_changes_no_weight_of_the_model_itself() -> None:
    trained = learn(learner(), 0)
    kept = {name: weight.clone() for name, weight in trained.model.state_dict().items()}
    for _, weight in trained.weights():
        weight.isfinite()
    assert all(torch.equal(weight, kept[name]) for name, weight in trained.model.state_dict().items())


def test_only_adapters_are_trained() -> None:
    start = dict(tiny_model().named_parameters())
    trained = learn(learner(), 0, 1)
    frozen = {
        name.replace(".base_layer", ""): weight
        for name, weight in trained.model.named_parameters()
        if "lora_" not in name
    }
    assert frozen.keys() == start.keys()
    assert all(torch.equal(weight, start[name]) for name, weight in frozen.items())
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in trained.model.named_parameters())


def test_an_explicit_gate_is_trained_beside_them_and_not_adapted() -> None:
    trained = learn(learner(name="eh_grpo"), 0)
    gate = gate_of(trained.model)
    assert type(gate) is torch.nn.Linear
    assert gate.weight.any()
    assert "gate_head.weight" in dict(trained.weights())


@pytest.mark.parametrize("name", ["ih_grpo", "eh_grpo"])
def test_a_resumed_run_is_the_run_that_was_not_bit_for_bit(tmp_path: Path, name: str) -> None:
    whole = learn(learner(name=name), 0, 1, 2)

    torch.save(learn(learner(name=name), 0).state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    resumed = learner(name=name)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    learn(resumed, 1, 2)

    expected = whole.model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.model.state_dict().items())


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_is_a_plain_model(tmp_path: Path, tied: bool) -> None:
    trained = learn(learner(tied=tied), 0)
    trained.save_model(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert score(loaded, PROBE) == pytest.approx(trained.score(PROBE), abs=1e-5)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert loaded.config.architectures == ["Qwen3ForCausalLM"]
    assert loaded.config.tie_word_embeddings is tied


def test_the_layers_to_adapt_can_be_named_and_no_others_are() -> None:
    model = tiny_model()
    add_adapters(model, LoraOptions(rank=2, target_modules=("q_proj", "down_proj")))
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted == {"q_proj", "down_proj"}
    with pytest.raises(ModelUnusable, match=r"called lm_head; there are down_proj, .*v_proj"):
        add_adapters(tiny_model(), LoraOptions(rank=2, target_modules=("q_proj", "lm_head")))


def test_adapters_of_a_half_precision_model_are_float32_and_merge_into_its_own_type() -> None:
    model = tiny_model().bfloat16()
    trained = Learner(model, TOKENS, ObjectiveOptions(), OptimiserOptions(1e-5), temperature=1.0, lora=LORA)
    learn(trained, 0)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for _, weight in trained.weights()} == {torch.bfloat16}

"""The prediction follows from the settings, and what autograd keeps is counted right."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cellar_trainer.learning import memory
from cellar_trainer.learning.lora import LoraOptions
from cellar_trainer.learning.memory import Shape, predicted_memory, shape_model
from cellar_trainer.learning.model import hidden_states
from tests.tiny_model import save_tiny_model, tiny_model

BATCH = Shape(rows=2, width=64)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def predict(path: Path, *, lora: int = 0, ranks: int = 1, dtype: str = "float32", **changes: Any) -> dict[str, float]:
    options = {"compute_dtype": "float32", "activation_checkpointing": False, **changes}
    return predicted_memory(shape_model(path, dtype=dtype, lora=LoraOptions(lora)), BATCH, ranks=ranks, **options)


def test_weights_gradients_and_moments_are_the_parameters_four_times(path: Path) -> None:
    size = sum(weight.nbytes for weight in tiny_model().parameters())
    use = predict(path)
    assert (use["weights"], use["gradients"], use["optimiser"]) == (size, size, 2 * size)
    half = predict(path, dtype="bfloat16")
    assert (half["weights"], half["optimiser"]) == (size / 2, size)


def test_activations_are_what_a_real_forward_pass_keeps(path: Path) -> None:
    model = tiny_model()
    weights = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_states(model, torch.zeros(BATCH, dtype=torch.long), torch.arange(BATCH.width).expand(BATCH))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    backward = real / model.config.num_hidden_layers  # the gradients of one layer's activations
    assert predict(path)["activations"] == pytest.approx(real + backward, rel=0.15)


def test_each_setting_saves_what_it_is_for(path: Path) -> None:
    full = predict(path)
    assert predict(path, activation_checkpointing=True)["activations"] < 0.8 * full["activations"]
    assert predict(path, compute_dtype="bfloat16")["activations"] < 0.95 * full["activations"]
    adapted = predict(path, lora=2)
    adapters = adapted["gradients"]
    assert 0 < adapters < full["gradients"] / 10
    assert (adapted["weights"], adapted["optimiser"]) == (full["weights"] + adapters, 2 * adapters)
    assert adapted["head"] < full["head"], "a frozen head has no gradient"
    shared = predict(path, ranks=2)
    assert (shared["gradients"], shared["optimiser"]) == (full["gradients"] / 2, full["optimiser"] / 2)
    assert shared["weights"] > full["weights"] / 2, "beside its share, what is gathered at the moment"
    assert shared["activations"] == full["activations"]


@pytest.mark.parametrize(
    ("lora", "ranks", "copied"), [(0, 1, "nothing"), (0, 2, "all"), (2, 2, "all"), (2, 1, "adapted")]
)
def test_weights_sent_from_the_gpu_are_copied_if_they_are_not_there_as_they_are_sent(
    path: Path, monkeypatch: pytest.MonkeyPatch, lora: int, ranks: int, copied: str
) -> None:
    model = tiny_model()
    body = {weight for layer in model.model.layers for weight in layer.parameters() if weight.ndim == 2}
    sizes = {
        "nothing": 0,
        "all": sum(weight.nbytes for weight in model.parameters()),
        "adapted": sum(weight.nbytes for weight in body),
    }
    monkeypatch.setattr(memory, "HEAD_TILES", 0)  # the tiny model is smaller than these
    options: Any = {"compute_dtype": "float32", "activation_checkpointing": True, "ranks": ranks}
    shape = shape_model(path, dtype="float32", lora=LoraOptions(lora))
    use = predicted_memory(shape, Shape(1, 1), sent_from_gpu=True, **options)
    room = use["gradients"] + use["activations"] + use["head"]  # which a publish finds empty
    assert use["publishing"] == max(0, sizes[copied] - room)
    assert (use["publishing"] > 0) is (copied != "nothing")
    assert predict(path, lora=lora, ranks=ranks)["publishing"] == 0

"""What ranks tell each other. That they train as one is tested with two of them."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from cellar_trainer.learning import sharding
from cellar_trainer.learning.objectives.measures import Mean, Sum
from cellar_trainer.learning.sharding import merged_over_ranks


class OnAGPU:
    """A tensor that cannot be added to another GPU's."""

    def cpu(self) -> torch.Tensor:
        return torch.tensor(2.0)


def test_measures_of_several_gpus_are_added_up_in_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(gathered: list[Any], own: Any) -> None:
        gathered[:] = [own, own]

    monkeypatch.setattr(sharding, "ranks", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    there: Any = OnAGPU()
    merged = merged_over_ranks({"sum": Sum(there), "mean": Mean(there, there)})
    assert {name: float(measure) for name, measure in merged.items()} == {"sum": 4.0, "mean": 1.0}

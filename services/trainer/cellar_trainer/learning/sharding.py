"""What the learner has to know of the processes that train together. In a process by itself all is the identity.

FSDP2: every process, a rank, holds a share of each weight, of its gradient and of the optimiser's state, and sees other
micro-batches. Before a layer is computed its weights are gathered; after its backward pass the gradients are summed and
dealt again. They are summed, not averaged, because losses are weighted by the whole step's totals
(`objectives.normalisation`). Everything here but `rank` and `ranks` has to be called by all ranks alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from cellar_trainer.learning.objectives.measures import Measure, merge

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def shard(module: nn.Module, parts: Iterable[nn.Module], device_type: str, *, methods: Sequence[str] = ()) -> None:
    """Deal the weights of `module` over the ranks: each part's by itself, and what is left beside them.

    All weights of a part, and all that are left, have to be of one type.
    `methods` are those of `module` that read weights, besides `forward`.
    """
    mesh = init_device_mesh(device_type, (ranks(),))
    for part in (*parts, module):
        # Also the outermost, whose head is needed again at once, so that between two calls all weights are shares.
        sharded: FSDPModule = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # what the factor would be done with, gloo cannot
    for name in methods:
        register_fsdp_forward_method(module, name)


def whole(tensor: Tensor) -> Tensor:
    """The tensor that `tensor` is a share of, without gradient. May share its memory with `tensor`."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What a rank holds of `tensor`, which all have whole, if `like` is its share of one of the same shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor.clone()
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def on_first_rank(tensor: Tensor) -> Tensor:
    """The whole tensor in the first rank's main memory, so that not every rank keeps a copy; an empty one elsewhere."""
    gathered = whole(tensor)
    return gathered.cpu() if rank() == 0 else gathered.new_empty(0)


def dealt(items: Sequence[T]) -> tuple[Sequence[T], int]:
    """This rank's share, and how many fewer these are than the most that a rank has."""
    share = items[rank() :: ranks()]
    return share, -(-len(items) // ranks()) - len(share)


def merged_over_ranks(measures: dict[str, Measure]) -> dict[str, Measure]:
    """Of all ranks, on each of them."""
    if ranks() == 1:
        return measures
    gathered: list[dict[str, Measure]] = [{} for _ in range(ranks())]
    dist.all_gather_object(gathered, {name: _in_main_memory(measure) for name, measure in measures.items()})
    merged: dict[str, Measure] = {}
    for part in gathered:
        merge(merged, part)
    return merged


def _in_main_memory(measure: Any) -> Measure:
    """On its own GPU each rank's would come out of the pickle again, and no two of them could be added."""
    moved: Measure = replace(measure, **{field.name: getattr(measure, field.name).cpu() for field in fields(measure)})
    return moved

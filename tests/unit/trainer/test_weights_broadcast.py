"""Weights by broadcast: our half of the collective, and the rule that HTTP decides. A real vLLM has its own test."""

import base64
import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from torch.cuda import nccl
from torch.distributed import BroadcastOptions, PrefixStore, TCPStore  # type: ignore[attr-defined]

from cellar_trainer.policy.vllm import ControlFailed, VLLMControl
from cellar_trainer.weights import Broadcast, GlooGroup, NCCLGroup, broadcast
from tests.scripted_vllm import ScriptedVLLM

WEIGHTS = [
    ("a", torch.arange(6, dtype=torch.float32).view(2, 3).T),  # not contiguous
    ("b", torch.tensor([7.0], dtype=torch.bfloat16)),
    ("c", torch.tensor([[8.0], [9.0]])),
]


class ScriptedGroup:
    """Broadcasts by calling a function."""

    init_info = {"meet": "me"}

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work

    def connect(self) -> None:
        pass

    def update_info(self, weights: object) -> dict[str, Any]:
        return {}

    def broadcast(self, weights: object) -> None:
        self._work()


def control(server: ScriptedVLLM) -> VLLMControl:
    return VLLMControl("http://vllm", transport=server.transport)


def gloo(world_size: int) -> GlooGroup:
    return GlooGroup(world_size, host="127.0.0.1", timeout_s=10.0)


async def test_a_group_has_a_rank_for_each_worker_and_one_for_the_trainer() -> None:
    sizes: list[int] = []

    def make(world_size: int) -> ScriptedGroup:
        sizes.append(world_size)
        return ScriptedGroup(lambda: None)

    server = ScriptedVLLM()
    transfer = Broadcast(make)
    await transfer.open(control(server))
    assert sizes == [2]
    assert server.calls == [("/init_weight_transfer_engine", {"init_info": {"meet": "me"}})]


def test_weights_leave_the_gpu_unless_they_are_sent_from_there() -> None:
    on_gpu: Any = SimpleNamespace(cpu=lambda: "in main memory")
    assert Broadcast(gloo).prepare(on_gpu) == "in main memory"
    assert Broadcast(gloo, from_gpu=True).prepare(on_gpu) is on_gpu


async def test_when_the_call_fails_a_collective_that_hangs_is_not_waited_for() -> None:
    release = threading.Event()
    server = ScriptedVLLM(update_weights=[httpx.Response(500, text="worker: no")])
    transfer = Broadcast(lambda world_size: ScriptedGroup(release.wait))
    await transfer.open(control(server))
    with pytest.raises(ControlFailed, match="worker: no"):
        async with transfer.carry(control(server), WEIGHTS) as send:
            await send()
    stuck = [thread for thread in threading.enumerate() if thread.name == "weights"]
    assert [thread.daemon for thread in stuck] == [True]
    release.set()
    stuck[0].join()


async def test_a_collective_that_fails_by_itself_ends_the_transfer() -> None:
    def fail() -> None:
        raise RuntimeError("connection closed by peer")

    transfer = Broadcast(lambda world_size: ScriptedGroup(fail))
    server = ScriptedVLLM()
    await transfer.open(control(server))
    with pytest.raises(ControlFailed, match="the trainer's half.*connection closed by peer"):
        async with transfer.carry(control(server), WEIGHTS) as send:
            await send()


async def test_gloo_sends_every_bit_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "CHUNK_BYTES", 10)
    group = gloo(2)
    received = torch.zeros(24 + 2 + 8, dtype=torch.uint8)

    def worker() -> None:
        info, timeout = group.init_info, timedelta(seconds=10)
        store = TCPStore(info["host"], info["port"], info["world_size"], is_master=False, timeout=timeout)
        theirs = broadcast.Gloo(PrefixStore("weights", store), 1, info["world_size"], timeout)
        for chunk in received.split(group.update_info(WEIGHTS)["chunk_bytes"]):
            theirs.broadcast([chunk], BroadcastOptions()).wait()

    thread = threading.Thread(target=worker)
    thread.start()
    group.connect()
    group.broadcast(WEIGHTS)
    thread.join()
    assert group.update_info(WEIGHTS) == {
        "names": ["a", "b", "c"],
        "dtype_names": ["float32", "bfloat16", "float32"],
        "shapes": [[3, 2], [1], [2, 1]],
        "chunk_bytes": 10,
    }
    a, b, c = received.split([24, 2, 8])
    assert a.view(torch.float32).tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    assert b.clone().view(torch.bfloat16).tolist() == [7.0]
    assert c.clone().view(torch.float32).tolist() == [8.0, 9.0]


async def test_nccl_meets_the_workers_as_vllm_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of its collectives and what goes over HTTP; without a GPU there is no more to test."""
    collectives: list[object] = []
    zeros = torch.zeros
    monkeypatch.setattr(nccl, "unique_id", lambda: b"\x01" * 128)
    monkeypatch.setattr(nccl, "init_rank", lambda size, uid, rank: ("communicator", size, uid[:1], rank))
    monkeypatch.setattr(nccl, "all_reduce", lambda tensors, comms: collectives.append((tensors[0].tolist(), comms)))
    monkeypatch.setattr(
        nccl, "broadcast", lambda tensors, root, comms: collectives.append((tensors[0].is_contiguous(), root, comms))
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: collectives.append("done"))
    monkeypatch.setattr(torch, "zeros", lambda n, device: zeros(n))
    group = NCCLGroup(2, device=torch.device("cuda"))
    group.connect()
    group.broadcast(WEIGHTS)
    assert group.init_info == {
        "nccl_unique_id_b64": base64.b64encode(b"\x01" * 128).decode(),
        "rank_offset": 1,
        "world_size": 2,
        "packed": False,
    }
    assert group.update_info(WEIGHTS)["shapes"] == [[3, 2], [1], [2, 1]]
    communicator = ("communicator", 2, b"\x01", 0)
    assert collectives == [
        ([0.0], [communicator]),
        "done",
        *[(True, 0, [communicator])] * 3,
        "done",
    ]

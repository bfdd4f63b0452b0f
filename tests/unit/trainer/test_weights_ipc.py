"""What CUDA IPC sends over HTTP; without a GPU there is no more to test."""

import base64
import pickle
from types import SimpleNamespace

import pytest
import torch

from cellar_trainer.policy.vllm import VLLMControl
from cellar_trainer.weights import IPCTransfer, ipc
from tests.scripted_vllm import ScriptedVLLM


async def test_one_handle_per_weight_under_its_gpus_name(monkeypatch: pytest.MonkeyPatch) -> None:
    waited_for: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited_for.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-1"))
    monkeypatch.setattr(ipc, "reduce_tensor", lambda weight: (None, ("handle", weight.sum().item())))
    server = ScriptedVLLM()
    control = VLLMControl("http://vllm", transport=server.transport)
    transfer = IPCTransfer()
    await transfer.open(control)
    weights = [("a", torch.ones(2, 3).T), ("b", torch.ones(1, dtype=torch.bfloat16))]
    async with transfer.carry(control, weights) as send:
        assert server.update_info == {}
        assert waited_for == [torch.device("cpu")], "the weights' own device"
        await send()
    assert server.calls[0] == ("/init_weight_transfer_engine", {"init_info": {"packed": False}})
    info = server.update_info
    assert pickle.loads(base64.b64decode(info.pop("ipc_handles_pickled"))) == [
        {"GPU-1": ("handle", 6.0)},
        {"GPU-1": ("handle", 1.0)},
    ]
    assert info == {"names": ["a", "b"], "dtype_names": ["float32", "bfloat16"], "shapes": [[3, 2], [1]]}

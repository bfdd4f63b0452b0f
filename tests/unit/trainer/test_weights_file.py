"""Weights by file: no room for them is said in the user's words, and nothing is left behind for ever."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from cellar_trainer.policy.vllm import ControlFailed, VLLMControl
from cellar_trainer.weights import FileTransfer
from cellar_trainer.weights import file as file_module
from tests.scripted_vllm import ScriptedVLLM

WEIGHTS = [("a", torch.ones(2))]
CARRY_AND_WAIT = """
import asyncio, sys, torch
from pathlib import Path
from cellar_trainer.weights import FileTransfer

async def main():
    async with FileTransfer(Path(sys.argv[1])).carry(None, [("a", torch.ones(2))]):
        print("carried", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def control() -> VLLMControl:
    return VLLMControl("http://vllm", transport=ScriptedVLLM().transport)


def carry_and_die(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CARRY_AND_WAIT, str(folder)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"carried\n"
        killed.kill()


async def test_weights_leave_the_gpu_one_by_one() -> None:
    on_gpu: Any = SimpleNamespace(cpu=lambda: "in main memory")
    assert FileTransfer().prepare(on_gpu) == "in main memory"


async def test_a_folder_that_is_full_or_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise SafetensorError("No space left on device")

    with pytest.raises(ControlFailed, match="policy.weights_dir: .*none does not take") as missing:
        async with FileTransfer(tmp_path / "none").carry(control(), WEIGHTS):
            pass
    monkeypatch.setattr(file_module, "save_file", full)
    with pytest.raises(ControlFailed, match=f"policy.weights_dir: {tmp_path} does not take .*No space") as no_room:
        async with FileTransfer(tmp_path).carry(control(), WEIGHTS):
            pass
    assert missing.value.refused
    assert no_room.value.refused
    assert os.listdir(tmp_path) == []


async def test_what_a_killed_trainer_left_is_removed_and_what_a_living_one_carries_is_not(tmp_path: Path) -> None:
    carry_and_die(tmp_path)
    (left,) = os.listdir(tmp_path)
    async with FileTransfer(tmp_path).carry(control(), WEIGHTS):
        (living,) = set(os.listdir(tmp_path)) - {left}
        await FileTransfer(tmp_path).open(control())
        assert os.listdir(tmp_path) == [living]
        assert os.listdir(tmp_path / living) == ["model.safetensors"]
    assert os.listdir(tmp_path) == []

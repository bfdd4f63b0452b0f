"""What is asked of the services before anything is played."""

from functools import partial

import httpx
import pytest

from cellar_trainer import wiring
from cellar_trainer.config import Config, parse_config
from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.policy.vllm import VLLMControl
from tests.scripted_vllm import ScriptedVLLM


def config(kind: str) -> Config:
    return parse_config(
        {"output": "o", "model": {"path": "m"}, "tasks": {"path": "t"}, "policy": {"kind": kind, "url": "http://vllm"}}
    )


async def label(server: ScriptedVLLM, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(wiring, "VLLMControl", partial(VLLMControl, transport=server.transport))
    return await wiring.weight_label(config("vllm"))


async def test_the_label_of_weights_is_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ScriptedVLLM()
    server.label = "7"
    assert await label(server, monkeypatch) == "7"


async def test_a_server_that_cannot_be_steered_has_its_first_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await label(ScriptedVLLM(weight_info=[httpx.Response(404)]), monkeypatch) == "default"


async def test_a_server_that_is_not_there_has_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PolicyUnavailable, match="/weight_info"):
        await label(ScriptedVLLM(weight_info=[httpx.ConnectError("away")]), monkeypatch)


async def test_a_local_policy_has_the_label_local() -> None:
    assert await wiring.weight_label(config("local")) == "local"

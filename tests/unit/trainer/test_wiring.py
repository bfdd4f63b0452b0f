"""What is asked of the services before anything is played."""

from functools import partial

import httpx
import pytest

from cellar_trainer import wiring
from cellar_trainer.config import Config, parse_config
from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.policy.vllm import VLLMControl
from tests.scripted_vllm import ScriptedVLLM


def config(kind: str, **policy: str) -> Config:
    policy |= {"kind": kind, "url": "http://vllm"}
    return parse_config({"output": "o", "model": {"path": "m"}, "tasks": {"path": "t"}, "policy": policy})


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


async def test_the_servers_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"weight_version": "7"})

    monkeypatch.setattr(wiring, "VLLMControl", partial(VLLMControl, transport=httpx.MockTransport(answer)))
    monkeypatch.setenv("CELLAR_VLLM_KEY", "of the environment")
    await wiring.weight_label(config("vllm"))
    await wiring.weight_label(config("vllm", api_key="of the file"))
    keys = [request.headers["authorization"] for request in asked]
    assert keys == ["Bearer of the environment", "Bearer of the file"]


async def test_a_local_policy_has_the_label_local() -> None:
    assert await wiring.weight_label(config("local")) == "local"

"""Steering a vLLM server: what is asked, what is made of the answers, and pauses that somebody left behind."""

import asyncio
import time

import httpx
import pytest

from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.policy.vllm import ControlFailed, VLLMControl, VLLMPolicy, control
from cellar_trainer.types import Sampling
from tests.scripted_vllm import ScriptedVLLM


def steering(server: ScriptedVLLM) -> VLLMControl:
    return VLLMControl("http://vllm", transport=server.transport)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "POLL_S", 0.005)


async def test_a_pause_keeps_what_is_being_sampled_and_the_key_goes_along() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    await VLLMControl("http://vllm", api_key="secret", transport=httpx.MockTransport(answer)).pause()
    assert (seen[0].url.query, seen[0].headers["authorization"]) == (b"mode=keep", "Bearer secret")


async def test_errors_say_which_route_and_whether_the_server_was_there() -> None:
    server = ScriptedVLLM(
        pause=[httpx.Response(500, json={"error": {"message": "engine dead"}}), httpx.ReadTimeout("slow")],
        resume=[httpx.Response(404, text="Not Found")],
        reset_prefix_cache=[httpx.Response(200, json={"success": False})],
    )
    for call, refused, message in (
        (steering(server).pause, True, "/pause.*500: engine dead"),
        (steering(server).pause, False, "/pause.*no answer.*slow"),
        (steering(server).resume, True, "/resume.*set VLLM_SERVER_DEV_MODE=1"),
        (steering(server).reset_prefix_cache, True, "could not empty its cache"),
    ):
        with pytest.raises(ControlFailed, match=message) as failure:
            await call()
        assert failure.value.refused == refused


async def test_only_an_update_that_was_started_leaves_incomplete_weights() -> None:
    server = ScriptedVLLM()
    steer = steering(server)
    await steer.abandon_update()
    assert await steer.weight_label() == "default"
    await steer.start_update()
    await steer.abandon_update()
    assert await steer.weight_label() == "incomplete"


async def test_a_pause_that_nobody_ends_is_ended_after_our_patience() -> None:
    server = ScriptedVLLM()
    steer = steering(server)
    await steer.pause()
    await steer.start_update()
    await steer.end_pause(patience_s=0.05)
    assert (server.paused, server.updating, server.label) == (False, False, "incomplete")


async def test_a_pause_of_somebody_who_lives_is_left_to_end() -> None:
    server = ScriptedVLLM()
    steer = steering(server)
    await steer.pause()
    waiting = asyncio.create_task(steer.end_pause(patience_s=60.0))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await steer.resume()
    started = time.monotonic()
    await waiting
    assert time.monotonic() - started < 30
    assert server.routes == ["/pause", "/resume"]


async def test_a_server_without_these_routes_never_pauses() -> None:
    server = ScriptedVLLM(is_paused=[httpx.Response(404, text="Not Found")])
    await steering(server).end_pause()


async def test_a_server_is_well_when_its_workers_answer_too() -> None:
    assert await steering(ScriptedVLLM()).is_well()
    assert not await steering(ScriptedVLLM(health=[httpx.Response(503)])).is_well()
    assert not await steering(ScriptedVLLM(collective_rpc=[httpx.ReadError("reset")])).is_well()


async def test_the_check_before_the_first_rollout_sets_a_paused_server_going(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ScriptedVLLM()
    server.paused = True
    patience = VLLMControl.end_pause
    monkeypatch.setattr(VLLMControl, "end_pause", lambda self: patience(self, patience_s=0.01))
    policy = VLLMPolicy("http://vllm", "m", transport=server.transport)
    with pytest.raises(PolicyUnavailable, match="without a log-probability"):  # of which the script knows nothing
        await policy.check(Sampling(1, trigger_id=7))
    assert not server.paused

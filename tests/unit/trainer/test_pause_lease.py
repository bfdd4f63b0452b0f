"""The middleware that has vLLM go on by itself (deploy/vllm/cellar_lease.py). With a real vLLM it has its own test."""

import asyncio
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from cellar_trainer.policy.vllm.wire import INCOMPLETE
from cellar_trainer.serving import EXTENSION_DIR

LEASE_S = 0.05

spec = importlib.util.spec_from_file_location("cellar_lease", EXTENSION_DIR / "cellar_lease.py")
assert spec is not None
assert spec.loader is not None
cellar_lease = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cellar_lease)


class Engine:
    """vLLM's engine client, as far as the lease uses it."""

    def __init__(self, *, unfinished: bool = False) -> None:
        self.paused = False
        self.resumed = asyncio.Event()
        self.label = "3"
        self._unfinished = unfinished

    async def is_paused(self) -> bool:
        return self.paused

    async def collective_rpc(self, method: str) -> list[list[bool]]:
        assert method == "abandon_weight_update"
        return [[self._unfinished]]

    async def update_weight_version(self, label: str) -> None:
        self.label = label

    async def resume_generation(self) -> None:
        self.paused = False
        self.resumed.set()


class Server:
    """The middleware around an app that takes `busy_s` for `/update_weights`, and for `/invocations` until it goes
    on."""

    def __init__(
        self, engine: Engine, *, api_key: list[str] | None = None, busy_s: float = 0.0, root_path: str = ""
    ) -> None:
        self._engine = engine
        self._root_path = root_path
        self._busy_s = busy_s
        self._state = SimpleNamespace(engine_client=engine, args=SimpleNamespace(api_key=api_key))
        self._app = cellar_lease.PauseLease(self._answer)

    async def call(self, path: str, method: str = "POST", key: str | None = None) -> int:
        statuses: list[int] = []

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        scope = {"type": "http", "method": method, "path": path, "root_path": self._root_path, "headers": headers}
        await self._app({**scope, "app": SimpleNamespace(state=self._state)}, None, send)
        return statuses[0]

    async def _answer(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] in ("/pause", "/resume"):
            self._engine.paused = scope["path"] == "/pause"
        if scope["path"] == "/update_weights":
            await asyncio.sleep(self._busy_s)
        if scope["path"] == "/invocations":
            await self._engine.resumed.wait()
        await send({"status": 200})


@pytest.fixture(autouse=True)
def _short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLAR_PAUSE_LEASE_S", str(LEASE_S))


@pytest.mark.parametrize(("unfinished", "label"), [(False, "3"), (True, "incomplete")])
async def test_a_pause_without_a_sign_of_life_ends(unfinished: bool, label: str) -> None:
    engine = Engine(unfinished=unfinished)
    await Server(engine).call("/pause")
    assert engine.paused
    await asyncio.sleep(6 * LEASE_S)
    assert (engine.paused, engine.label) == (False, label)


async def test_who_steers_while_a_pause_is_being_ended_waits_for_it() -> None:
    engine = Engine(unfinished=True)
    server = Server(engine)
    abandon = engine.collective_rpc
    abandoning = asyncio.Event()

    async def slow_abandon(method: str) -> list[list[bool]]:
        abandoning.set()
        await asyncio.sleep(LEASE_S / 2)
        return await abandon(method)

    engine.collective_rpc = slow_abandon  # type: ignore[method-assign]
    await server.call("/pause")
    await abandoning.wait()
    await server.call("/pause")
    assert (engine.paused, engine.label) == (True, "incomplete")


async def test_each_step_of_an_update_renews_it_and_a_long_one_is_not_interrupted() -> None:
    engine = Engine()
    server = Server(engine, busy_s=4 * LEASE_S)
    await server.call("/pause")
    await asyncio.sleep(LEASE_S / 2)
    await server.call("/update_weights")
    assert engine.paused


async def test_who_only_looks_renews_nothing() -> None:
    engine = Engine()
    server = Server(engine)
    await server.call("/pause")
    for _ in range(12):
        await server.call("/is_paused", "GET")
        await asyncio.sleep(LEASE_S / 2)
    assert not engine.paused


async def test_a_request_that_hangs_in_the_pause_does_not_keep_it_alive() -> None:
    engine = Engine()
    server = Server(engine)
    await server.call("/pause")
    async with asyncio.timeout(20 * LEASE_S):
        assert await server.call("/invocations") == 200
    assert not engine.paused


async def test_requests_that_do_not_steer_do_not_renew() -> None:
    engine = Engine()
    server = Server(engine)
    await server.call("/pause")
    for _ in range(12):
        await server.call("/tokenize")
        await asyncio.sleep(LEASE_S / 2)
    assert not engine.paused


async def test_a_server_that_runs_is_left_alone() -> None:
    engine = Engine(unfinished=True)
    server = Server(engine)
    await server.call("/pause")
    await server.call("/resume")
    await asyncio.sleep(4 * LEASE_S)
    assert engine.label == "3"


async def test_a_lease_of_0_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLAR_PAUSE_LEASE_S", "0")
    engine = Engine()
    await Server(engine).call("/pause")
    await asyncio.sleep(4 * LEASE_S)
    assert engine.paused


async def test_steering_asks_for_the_key_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Engine(), api_key=["secret"])
    assert [await server.call("/pause", key=key) for key in (None, "wrong", "secret")] == [401, 401, 200]
    assert await server.call("/v1/models") == 200  # vLLM asks for it itself
    monkeypatch.setenv("VLLM_API_KEY", "of the environment")
    assert await Server(Engine()).call("/resume") == 401
    assert await Server(Engine()).call("/resume", key="of the environment") == 200


@pytest.mark.parametrize("root_path", ["", "/v1", "/v1/cellar", "/v"])
async def test_a_root_path_opens_nothing(root_path: str) -> None:
    server = Server(Engine(), api_key=["secret"], root_path=root_path)
    assert await server.call(f"{root_path}/pause") == 401
    assert await server.call(f"{root_path}/v1/models") == 200
    assert await server.call("/pause") == 401  # a proxy may have taken it off


@pytest.mark.parametrize("path", ["/versions", "/healthy/pause", "//v1/models", "/", ""])
async def test_only_whole_segments_are_open(path: str) -> None:
    assert await Server(Engine(), api_key=["secret"]).call(path) == 401


async def test_steering_below_a_root_path_renews() -> None:
    engine = Engine()
    server = Server(engine, root_path="/policy")
    await server.call("/pause")
    for _ in range(6):
        await server.call("/policy/start_weight_update")
        await asyncio.sleep(LEASE_S / 2)
    assert engine.paused


def test_both_sides_call_incomplete_weights_the_same() -> None:
    assert cellar_lease.INCOMPLETE == INCOMPLETE

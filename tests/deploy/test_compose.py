"""`docker compose up` from end to end: healthy, walled, training through an executor's death, and gone without a trace.

The tests are steps of one deployment, in their order. CELLAR_DEMO_STEPS shortens the training (25 steps, ten minutes).
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from cellar_client.errors import SessionLost
from cellar_client.retry import Retries
from cellar_client.sync import Cellar, SyncSession
from tests.deploy.deployment import Deployment

STEPS = int(os.environ.get("CELLAR_DEMO_STEPS", "25"))
FULL_TRAINING = 25
TRAINING_S = 60.0
"""Longest time of a step, on two cores with everything else on them."""
TRAJECTORIES = 128
RUN = "/var/lib/cellar/runs/demo"
SESSIONS = 4

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def cellar(engine: None) -> Iterator[Deployment]:
    cellar = Deployment("cellar-test")
    cellar.environment["CELLAR_DEMO_CHANGES"] = f"train.steps={STEPS}"
    cellar.build()
    try:
        cellar.compose("up", "--detach", timeout_s=900)
        yield cellar
    finally:
        cellar.compose("down", "--volumes", "--timeout", "5")


def test_everything_becomes_healthy(cellar: Deployment) -> None:
    cellar.becomes("trainer", "healthy", within_s=120)
    assert cellar.containers() == {
        "redis": "healthy",
        "executor": "healthy",
        "gateway": "healthy",
        "model": "exited 0",
        "vllm": "healthy",
        "trainer": "healthy",
    }


def test_the_executor_asks_for_its_key_and_isolates(cellar: Deployment) -> None:
    assert httpx.get(f"{cellar.url}/v1/info").status_code == 401
    with Cellar(cellar.url, api_key=cellar.api_key) as client:
        isolation = client.info().isolation
        assert (isolation.tier, isolation.seccomp, len(isolation.namespaces)) == ("warm", "allow-list", 7)
        assert client.execute("6 * 7").result == "42"


CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [("executor", "vllm", 8000), ("trainer", "redis", 6379), ("vllm", "redis", 6379), ("vllm", "executor", 8080)],
)
def test_a_service_does_not_know_those_it_has_no_business_with(
    cellar: Deployment, source: str, target: str, port: int
) -> None:
    assert cellar.python(source, CONNECT, target, str(port)) == "gaierror"


@pytest.mark.parametrize(("source", "target", "port"), [("executor", "redis", 6379), ("trainer", "vllm", 8000)])
def test_and_reaches_those_that_it_needs(cellar: Deployment, source: str, target: str, port: int) -> None:
    assert cellar.python(source, CONNECT, target, str(port)) == "connected"


@pytest.mark.parametrize(("source", "target"), [("executor", "vllm"), ("trainer", "redis"), ("vllm", "executor")])
def test_nor_does_it_help_to_know_the_address(cellar: Deployment, source: str, target: str) -> None:
    port = {"vllm": "8000", "redis": "6379", "executor": "8080"}[target]
    for network in cellar.facts(target)["NetworkSettings"]["Networks"].values():
        assert cellar.python(source, CONNECT, network["IPAddress"], port) in ("OSError", "TimeoutError")


def test_nothing_but_the_gateway_is_published_and_the_networks_have_no_way_out(cellar: Deployment) -> None:
    for service in ("redis", "executor", "vllm", "trainer"):
        assert not any(cellar.facts(service)["NetworkSettings"]["Ports"].values())
    for name in ("api", "store", "model"):
        (network,) = json.loads(cellar.docker("network", "inspect", f"{cellar.project}_{name}"))
        assert network["Internal"]
        bridge = subprocess.run(
            ["ip", "-4", "address", "show", f"br-{network['Id'][:12]}"], capture_output=True, text=True, check=True
        )
        assert "inet" not in bridge.stdout, "this host has an address there"


CONTROL = """
import sys, urllib.error, urllib.request
for route in ("pause", "resume", "update_weights", "collective_rpc", "sleep", "v1/completions"):
    json = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://vllm:8000/{route}", data=b"{}", headers=json)
    try:
        print(route, urllib.request.urlopen(request, timeout=5).status)
    except urllib.error.HTTPError as error:
        print(route, error.code)
"""


def test_the_model_server_is_steered_by_nobody_without_its_key(cellar: Deployment) -> None:
    statuses = {line.split()[1] for line in cellar.python("trainer", CONTROL).splitlines()}
    assert statuses == {"401"}


def test_training_goes_on_after_the_executor_was_killed_and_nothing_ran_twice(cellar: Deployment) -> None:
    wait_for_steps(cellar, 1)
    patient = Cellar(cellar.url, api_key=cellar.api_key, retries=Retries(attempts=100))
    with patient as client, ThreadPoolExecutor(2 * SESSIONS) as threads:
        lasting = [client.attach(client.create_session(recovery="replay").session_id) for _ in range(SESSIONS)]
        others = [client.attach(client.create_session().session_id) for _ in range(SESSIONS)]
        for session in (*lasting, *others):
            session.run("count = 0")
            session.queue("count += 1")
        outcomes = [threads.submit(outcome_of_a_long_run, session) for session in (*lasting, *others)]
        time.sleep(2)
        wait_for_rollouts(client, besides=2 * SESSIONS)
        cellar.compose("kill", "-s", "KILL", "executor")
        cellar.becomes("executor", "exited 137", within_s=10)
        time.sleep(5)
        assert cellar.containers()["trainer"] in ("healthy", "unhealthy")
        cellar.compose("up", "--detach", "--no-build", "executor")
        assert [outcome.result(timeout=120) for outcome in outcomes] == ["lost"] * 2 * SESSIONS
        for session in (*lasting, *others):
            assert [cell.status for cell in session.cells()][:3] == ["ok", "ok", "lost"]
        assert [session.run("count").result for session in lasting] == ["1"] * SESSIONS
    cellar.becomes("trainer", "exited 0", within_s=STEPS * TRAINING_S + 300)
    steps = metrics(cellar)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    complete = [step["trajectories"] == TRAJECTORIES for step in steps]
    assert complete == [step["dropped/rollouts_executor"] == 0 for step in steps], "what was lost is counted"
    assert not all(complete)
    if STEPS >= FULL_TRAINING:
        assert sum(step["reward_mean"] for step in steps[-3:]) / 3 >= 0.8


def test_any_of_several_executors_answers_for_any_session(cellar: Deployment) -> None:
    cellar.compose("up", "--detach", "--no-build", "--no-recreate", "--scale", "executor=3", "executor", "gateway")
    cellar.becomes("executor", "healthy, healthy, healthy", within_s=120)
    header = {"Authorization": f"Bearer {cellar.api_key}"}
    with Cellar(cellar.url, api_key=cellar.api_key) as client:
        session = client.create_session().session_id
        client.attach(session).run("x = 6")
    found: set[str] = set()
    deadline = time.monotonic() + 30
    while len(found) < 3:  # the gateway asks for their addresses now and then
        assert time.monotonic() < deadline, found
        found.add(httpx.get(f"{cellar.url}/v1/info", headers=header).json()["instance"])
    for _ in range(6):
        with Cellar(cellar.url, api_key=cellar.api_key) as client:
            assert client.attach(session).run("x * 7").result == "42"


def test_nothing_is_left(cellar: Deployment) -> None:
    cellar.compose("down", "--volumes", "--timeout", "5")
    assert cellar.left() == []


# --- parts ----------------------------------------------------------------------------------------


def outcome_of_a_long_run(session: SyncSession) -> str:
    """Sent again, as often as it takes, with the key of its first time."""
    try:
        return session.run("import time; time.sleep(30)").cells[-1].status
    except SessionLost:
        return "lost"


def wait_for_rollouts(client: Cellar, besides: int) -> None:
    """Until the trainer has sessions too."""
    deadline = time.monotonic() + TRAINING_S
    while len(list(client.sessions())) <= besides:
        assert time.monotonic() < deadline, "the trainer opened no session"
        time.sleep(0.05)


def wait_for_steps(cellar: Deployment, count: int) -> None:
    deadline = time.monotonic() + count * TRAINING_S + 300
    while (done := len(metrics(cellar))) < count:
        assert time.monotonic() < deadline, f"{done} steps\n{cellar.logs('trainer')}"
        assert cellar.containers()["trainer"] in ("healthy", "starting"), cellar.logs("trainer")
        time.sleep(2)


def metrics(cellar: Deployment) -> list[dict[str, Any]]:
    """Of each step; from the volume, whether or not the trainer is there."""
    command = ("run", "--rm", "--no-deps", "-T", "trainer", "sh", "-c", f"cat {RUN}/metrics.jsonl 2>/dev/null || true")
    return [json.loads(line) for line in cellar.compose(*command).splitlines()]

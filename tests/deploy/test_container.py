"""What the executor's container withholds from a cell that broke out of its jail, and which option of it does so."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
import yaml

from tests.deploy.deployment import ROOT, Deployment

ESCAPED = (ROOT / "tests/deploy/escaped.py").read_text()
IMAGE = "cellar-executor:0.1.0"
NONE, DOCKERS_OWN = "0000000000000000", "00000000a80425fb"
"""Sets of capabilities."""
AS_DEPLOYED = {
    "write to the root": "EROFS",
    "write to the server's code": "EROFS",
    "files of the host": [],
    "the engine's socket": "ENOENT",
    "become root": "EPERM",
    "capabilities": NONE,
    "capabilities to be had": NONE,
    "user of a set-user-id program": "the same",
    "mount": "EPERM",
    "make a device": "EPERM",
    "raw packets": "EPERM",
    "set the clock": "EPERM",
    "write /proc/sys": "EROFS",
    "write /sys": "EROFS",
    "read the kernel's memory": "ENOENT",
    "processes of the host": False,
    "keyring": "EPERM",
    "io_uring": "EPERM",
    "user-fault": "EPERM",
    "performance-counters": "EPERM",
    "load-module": "EPERM",
    # These it can. Jails are made so; and whoever is the server has the server's secrets (docs/security.md).
    "keep a file in /tmp": "DONE",
    "mount in a user namespace": "DONE",
    "the server's environment": "DONE",
}
UP_TO_THE_KERNEL = {"io_uring", "user-fault", "performance-counters", "load-module"}
"""What these answer where no filter does so first."""
AS_ROOT = {
    "become root": "DONE",
    "capabilities": DOCKERS_OWN,
    "capabilities to be had": DOCKERS_OWN,
    "user of a set-user-id program": "root",
    "make a device": "DONE",
    "raw packets": "DONE",
}
WITHOUT: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], Mapping[str, Any]]] = {
    "read_only": (("read_only",), (), {"write to the root": "DONE", "write to the server's code": "EACCES"}),
    "cap_drop": (("cap_drop",), (), {"capabilities to be had": DOCKERS_OWN}),
    "cap_drop and user": (("cap_drop", "user"), ("--user=0:0",), AS_ROOT),
    "no-new-privileges": (("no-new-privileges",), (), {"user of a set-user-id program": "root"}),
    "seccomp": (
        ("seccomp",),
        ("--security-opt=seccomp=unconfined",),
        {"keyring": "EINVAL"},
    ),
}
"""Options -> which to leave out, what to say instead, and what an escaped cell finds changed."""
UNREACHABLE = {"Network is unreachable", "No route to host", "TimeoutError"}
TALK = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 3) as peer:
        peer.sendall(b"PING\\r\\n\\r\\n")
        print("answers", peer.recv(7).decode())
except OSError as error:
    print(type(error).__name__ if error.strerror is None else error.strerror)
"""


@pytest.fixture(scope="module")
def deployed(engine: None) -> Iterator[Deployment]:
    deployment = Deployment("cellar-container")
    deployment.compose("build", "redis", "executor", "gateway", timeout_s=1800)
    try:
        deployment.compose("up", "--detach", "redis", "executor", "gateway")
        deployment.becomes("gateway", "healthy", within_s=120)
        yield deployment
    finally:
        deployment.compose("down", "--volumes", "--timeout", "5")


def test_an_escaped_cell_is_still_contained(deployed: Deployment) -> None:
    assert json.loads(deployed.python("executor", ESCAPED)) == AS_DEPLOYED


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize(("removed", "instead", "changes"), WITHOUT.values(), ids=WITHOUT)
def test_each_option_is_what_contains_it(
    removed: tuple[str, ...], instead: tuple[str, ...], changes: Mapping[str, Any]
) -> None:
    kept = [argument for name, arguments in options().items() if name not in removed for argument in arguments]
    command = ["docker", "run", "--rm", "--network=none", *kept, *instead, "--entrypoint=python", IMAGE, "-c", ESCAPED]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found, expected = json.loads(ran.stdout), {**AS_DEPLOYED, **changes}
    if "seccomp" in removed:
        assert found["io_uring"] != "DONE"
        found, expected = (
            {k: v for k, v in answers.items() if k not in UP_TO_THE_KERNEL} for answers in (found, expected)
        )
    assert found == expected


@pytest.mark.parametrize(
    ("host", "port", "answer"),
    [
        ("redis", 6379, "answers -NOAUTH"),
        ("gateway", 8080, "answers HTTP/1."),
        ("vllm", 8000, "Temporary failure in name resolution"),
    ],
)
def test_the_network_has_those_that_the_executor_works_with(
    deployed: Deployment, host: str, port: int, answer: str
) -> None:
    assert deployed.python("executor", TALK, host, str(port)) == answer


def test_a_container_of_another_network_is_out_of_reach(deployed: Deployment) -> None:
    serve = ("--entrypoint=python", IMAGE, "-m", "http.server", "8000")
    stranger = deployed.docker("run", "--rm", "--detach", *serve).strip()
    try:
        address = deployed.docker(
            "inspect", "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", stranger
        ).strip()
        assert answers(address, 8000)
        assert deployed.python("executor", TALK, address, "8000") in UNREACHABLE
    finally:
        deployed.docker("rm", "--force", stranger)


def answers(address: str, port: int, within_s: float = 10.0) -> bool:
    """To the host."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((address, port), 1):
            return True
        time.sleep(0.1)
    return False


def options() -> dict[str, list[str]]:
    """The executor's in docker-compose.yml, by name, as `docker run` takes them."""
    text = re.sub(r"\$\{\w+(?::-|:\?)?(.*?)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    service = yaml.safe_load(text)["services"]["executor"]
    assert service["read_only"] is service["init"] is True
    found = {"read_only": ["--read-only"], "init": ["--init"], "user": [f"--user={service['user']}"]}
    found["cap_drop"] = [f"--cap-drop={capability}" for capability in service["cap_drop"]]
    found["tmpfs"] = [f"--tmpfs={folder}" for folder in service["tmpfs"]]
    return found | {re.split("[:=]", option)[0]: [f"--security-opt={option}"] for option in service["security_opt"]}

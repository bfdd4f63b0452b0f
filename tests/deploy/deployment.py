"""All of docker-compose.yml, in a project of its own, on a port of its own and with secrets of its own."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "tools/compose"
NO_SETTINGS = Path(__file__).with_name("nothing.env")
KEYS = ("CELLAR_API_KEY", "CELLAR_REDIS_PASSWORD", "CELLAR_VLLM_KEY")
KEPT = ("CELLAR_BUILD_NETWORK", "CELLAR_APPARMOR", "CELLAR_SELINUX")
"""What a host may need; all else is the defaults, whatever is in .env and around."""


class Deployment:
    def __init__(self, project: str) -> None:
        self.project = project
        self.port = free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CELLAR_") or name in KEPT},
            **{name: secrets.token_hex(32) for name in KEYS},
            "COMPOSE_PROJECT_NAME": project,
            "CELLAR_ADDRESS": f"127.0.0.1:{self.port}",
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_key(self) -> str:
        return self.environment["CELLAR_API_KEY"]

    def build(self) -> None:
        self._ran([str(COMPOSE), "wheels"], 60)
        self.compose("build", timeout_s=3600)

    def compose(self, *arguments: str, timeout_s: float = 300) -> str:
        """What it printed. Raises `CalledProcessError`, with both streams in its notes."""
        return self._ran([str(COMPOSE), "--env-file", str(NO_SETTINGS), *arguments], timeout_s)

    def facts(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's one container."""
        (facts,) = json.loads(self.docker("inspect", self.compose("ps", "--quiet", service).strip()))
        found: dict[str, Any] = facts
        return found

    def docker(self, *arguments: str, timeout_s: float = 60) -> str:
        return self._ran(["docker", *arguments], timeout_s)

    def python(self, service: str, code: str, *arguments: str) -> str:
        """In the container of a service, as its own user."""
        return self.compose("exec", "-T", service, "python3", "-c", code, *arguments).strip()

    def containers(self) -> dict[str, str]:
        """Service -> state: "healthy", "exited 0", ...; of a scaled service, those of all its containers."""
        states: dict[str, str] = {}
        for container in self._of_project("ps", "--all"):
            (facts,) = json.loads(self.docker("inspect", container))
            service, state = facts["Config"]["Labels"]["com.docker.compose.service"], facts["State"]
            health = state.get("Health", {}).get("Status", state["Status"])
            shown = health if state["Running"] else f"{state['Status']} {state['ExitCode']}"
            states[service] = f"{states[service]}, {shown}" if service in states else shown
        return states

    def becomes(self, service: str, wanted: str, *, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while (state := self.containers().get(service)) != wanted:
            assert time.monotonic() < deadline, f"{service} is {state}, not {wanted}\n{self.logs(service)}"
            time.sleep(1)

    def logs(self, service: str, lines: int = 40) -> str:
        return self.compose("logs", "--no-color", "--tail", str(lines), service)

    def left(self) -> list[str]:
        """Whatever of this project the engine still has."""
        kinds: Sequence[tuple[str, ...]] = [("ps", "--all"), ("network", "ls"), ("volume", "ls")]
        return [name for kind in kinds for name in self._of_project(*kind)]

    def _of_project(self, *listing: str) -> list[str]:
        label = f"label=com.docker.compose.project={self.project}"
        return self.docker(*listing, "--quiet", "--filter", label).split()

    def _ran(self, command: list[str], timeout_s: float) -> str:
        ran = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if ran.returncode != 0:
            error = subprocess.CalledProcessError(ran.returncode, command)
            error.add_note(ran.stdout + ran.stderr)
            raise error
        return ran.stdout


def missing() -> str | None:
    """Why nothing can be deployed here; None if it can."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    for command, name in ((["docker", "info"], "a Docker engine"), ([COMPOSE, "version"], "compose")):
        ran = subprocess.run([*command], capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            return f"{name} does not answer: {(ran.stderr or ran.stdout).strip()}"
    return None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

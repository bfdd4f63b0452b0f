"""The model server's container: what its entrypoint gives to vLLM, for which a script stands that tells."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cellar_trainer.serving import ENVIRONMENT, VLLMServer

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
KEY = "a secret of the test"
GIVEN = {"CELLAR_VLLM_KEY": KEY, "CELLAR_MODEL": "/models/m"}
TELL = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


@dataclass
class Started:
    arguments: list[str]
    environment: dict[str, str]

    def value(self, flag: str) -> str:
        """The last one, as argparse takes it."""
        last = max(index for index, argument in enumerate(self.arguments) if argument == flag)
        return self.arguments[last + 1]


def start(folder: Path, environment: dict[str, str], *arguments: str) -> Started:
    python = folder / "python3"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{TELL}' \"$@\"\n")
    python.chmod(0o755)
    done = run(f"{folder}:{os.environ['PATH']}", environment, arguments)
    assert done.returncode == 0, done.stderr
    return Started(*json.loads(done.stdout))


def run(path: str, environment: dict[str, str], arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [str(DEPLOY / "vllm/entrypoint"), *arguments]
    return subprocess.run(command, env={"PATH": path, **environment}, capture_output=True, text=True, timeout=30)


def image_environment(dockerfile: str) -> dict[str, str]:
    """Its ENV lines."""
    text = (DEPLOY / dockerfile).read_text().replace("\\\n", "")
    assignments = re.findall(r'([A-Z_]+)=("[^"]*"|\S+)', "".join(re.findall(r"^ENV .*", text, re.MULTILINE)))
    return {name: value.strip('"') for name, value in assignments if name != "PATH"}


def flags(arguments: Sequence[str]) -> dict[str, str]:
    """Each flag with its value, or with nothing."""
    following = [*arguments[1:], "--"]
    return {
        flag: "" if value.startswith("--") else value
        for flag, value in zip(arguments, following, strict=True)
        if flag.startswith("--")
    }


def test_on_cpu_it_is_the_server_that_tests_and_demo_run_with(tmp_path: Path) -> None:
    own = flags(VLLMServer(Path("/models/m"), log=tmp_path / "log", threads=1)._command)
    image = {**image_environment("vllm-cpu.Dockerfile"), **GIVEN}
    started = start(tmp_path, image)
    elsewhere = {"--host": "0.0.0.0", "--port": "8000"}
    assert flags(started.arguments) == own | elsewhere
    assert ENVIRONMENT.items() <= started.environment.items()
    assert (started.environment["OMP_NUM_THREADS"], started.environment["VLLM_CPU_OMP_THREADS_BIND"]) == ("1", "nobind")


def test_the_key_is_in_the_environment_alone(tmp_path: Path) -> None:
    started = start(tmp_path, GIVEN)
    assert started.environment["VLLM_API_KEY"] == KEY
    assert KEY not in " ".join(started.arguments)


@pytest.mark.parametrize("missing", GIVEN)
def test_nothing_starts_without(missing: str) -> None:
    done = run(os.environ["PATH"], {name: value for name, value in GIVEN.items() if name != missing})
    assert done.returncode != 0
    assert missing in done.stderr


@pytest.mark.parametrize("backend", ["cellar", "nccl", "ipc"])
def test_only_ipc_unpickles(backend: str, tmp_path: Path) -> None:
    started = start(tmp_path, {**GIVEN, "CELLAR_WEIGHT_BACKEND": backend})
    assert json.loads(started.value("--weight-transfer-config")) == {"backend": backend}
    assert ("VLLM_ALLOW_INSECURE_SERIALIZATION" in started.environment) == (backend == "ipc")


def test_an_unknown_backend_is_refused() -> None:
    done = run(os.environ["PATH"], {**GIVEN, "CELLAR_WEIGHT_BACKEND": "carrier pigeon"})
    assert done.returncode == 2
    assert "carrier pigeon is none of cellar, nccl, ipc" in done.stderr


def test_the_containers_arguments_go_before_the_images(tmp_path: Path) -> None:
    started = start(tmp_path, {**GIVEN, "CELLAR_VLLM_DEFAULTS": "--dtype float32"}, "--dtype", "bfloat16")
    assert started.value("--dtype") == "bfloat16"

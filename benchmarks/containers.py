"""Cellar in containers beside the same executor without them: image sizes, time to healthy, sessions and cells.

    .venv/bin/python -m benchmarks.containers [--rounds 10]

Needs a Docker engine. All sides have state that is flushed at every write; they are measured one after the other in
each round. Image sizes are those above the base image, which every image on a machine shares.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.executor import cells, sessions
from benchmarks.executor.cellar import CellarSide
from benchmarks.executor.report import Results, table
from benchmarks.executor.sides import Sizes
from benchmarks.executor.system import machine
from tests.deploy.deployment import Deployment, missing
from tests.executor_process import ExecutorProcess

MEASUREMENTS = (sessions.first_cell, sessions.per_second, cells.warm, sessions.executions_per_second)
IMAGES = {
    "cellar-executor": "python:3.12-slim-bookworm",
    "cellar-redis": "redis:7-bookworm",
    "cellar-gateway": "debian:bookworm-slim",
    "cellar-trainer": "python:3.11-slim-bookworm",
    "cellar-vllm-cpu": "python:3.11-slim-bookworm",
}
SERVICES = ("redis", "executor", "gateway")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(f"needs Docker: {reason}")
    with deployed("cellar-bench", *SERVICES) as some:
        print_images(some)
        side_by_side(some, arguments.rounds)
    with deployed("cellar-bench") as all_of_it:
        print("\n| service | s from its start to healthy |\n|---|---|")
        for service in (*SERVICES, "vllm", "trainer"):
            all_of_it.becomes(service, "healthy", within_s=300)
            print(f"| {service} | {to_healthy_s(all_of_it, service):.0f} |")


@contextmanager
def deployed(project: str, *services: str) -> Iterator[Deployment]:
    deployment = Deployment(project)
    deployment.build()
    try:
        start = time.monotonic()
        deployment.compose("up", "--detach", *services, timeout_s=900)
        print(f"up --detach {' '.join(services) or '(all)'}: {time.monotonic() - start:.0f} s", flush=True)
        yield deployment
    finally:
        deployment.compose("down", "--volumes", "--timeout", "5")


def print_images(deployment: Deployment) -> None:
    print("\n| image | MB above its base |\n|---|---|")
    for image, base in IMAGES.items():
        print(f"| {image} | {size_mb(deployment, f'{image}:0.1.0') - size_mb(deployment, base):.0f} |", flush=True)


def size_mb(deployment: Deployment, image: str) -> float:
    (facts,) = json.loads(deployment.docker("image", "inspect", image))
    return float(facts["Size"]) / 1e6


def side_by_side(deployment: Deployment, rounds: int) -> None:
    results = Results()
    sides = [CellarSide("container", deployment.url, 0, isolation=None, key=deployment.api_key)]
    sides.append(
        CellarSide("container, no gateway", executor_url(deployment), 0, isolation=None, key=deployment.api_key)
    )
    with tempfile.TemporaryDirectory() as data_dir, ExecutorProcess(Path(data_dir)) as server:
        sides.append(CellarSide("no container", server.url, server.process.pid, isolation=None))
        print(machine(sides[0].described()), flush=True)
        for number in range(rounds):
            print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr, flush=True)
            for measure in MEASUREMENTS:
                measure(results, sides, Sizes())
    print(file=sys.stderr)
    print(table(results, "container"), flush=True)


def executor_url(deployment: Deployment) -> str:
    """Of its container, on a network that this host has an address on."""
    facts = inspect(deployment, "executor")
    (address,) = [
        network["IPAddress"] for name, network in facts["NetworkSettings"]["Networks"].items() if name.endswith("_api")
    ]
    return f"http://{address}:8080"


def to_healthy_s(deployment: Deployment, service: str) -> float:
    state = inspect(deployment, service)["State"]
    first = next(check for check in state["Health"]["Log"] if check["ExitCode"] == 0)
    return (datetime.fromisoformat(first["End"]) - datetime.fromisoformat(state["StartedAt"])).total_seconds()


def inspect(deployment: Deployment, service: str) -> dict[str, Any]:
    container = deployment.compose("ps", "--quiet", service).strip()
    (facts,) = json.loads(deployment.docker("inspect", container))
    found: dict[str, Any] = facts
    return found


if __name__ == "__main__":
    main()

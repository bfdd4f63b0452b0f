"""Cellar in containers beside the same executor without them: image sizes, time to healthy, sessions and cells.

    .venv/bin/python -m benchmarks.containers [--rounds 10]

Needs a Docker engine. All sides have state that is flushed at every write; they are measured one after the other in
each round. Image sizes are also given above the base image, which images share and which has to have been pulled.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

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
    with events("cellar-bench") as told, deployed("cellar-bench") as all_of_it:
        all_of_it.becomes("trainer", "healthy", within_s=300)
        told.seek(0)
        print_times_to_healthy(told)


@contextmanager
def events(project: str) -> Iterator[TextIO]:
    """Of its containers, a JSON object on each line, as they come: the engine remembers only the last ones."""
    label = f"label=com.docker.compose.project={project}"
    listing = ["docker", "events", "--format", "{{json .}}", "--filter", "type=container", "--filter", label]
    with tempfile.TemporaryFile("w+") as told, subprocess.Popen(listing, stdout=told) as listening:
        try:
            yield told
        finally:
            listening.terminate()


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
    print("\n| image | MB | MB above its base |\n|---|---|---|")
    for image, base in IMAGES.items():
        whole, below = size_mb(deployment, f"{image}:0.1.0"), size_mb(deployment, base)
        print(f"| {image} | {whole:.0f} | {whole - below:.0f} |", flush=True)


def size_mb(deployment: Deployment, image: str) -> float:
    (facts,) = json.loads(deployment.docker("image", "inspect", image))
    return float(facts["Size"]) / 1e6


def side_by_side(deployment: Deployment, rounds: int) -> None:
    results = Results()
    sides = [CellarSide("container", deployment.url, 0, isolation=None, key=deployment.api_key)]
    with tempfile.TemporaryDirectory() as data_dir, ExecutorProcess(Path(data_dir)) as server:
        sides.append(CellarSide("no container", server.url, server.process.pid, isolation=None))
        print(machine(sides[0].described()), flush=True)
        for number in range(rounds):
            print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr, flush=True)
            for measure in MEASUREMENTS:
                measure(results, sides, Sizes())
    print(file=sys.stderr)
    print(table(results, "container"), flush=True)


def print_times_to_healthy(told: Iterable[str]) -> None:
    """From a container's start to its first good health check."""
    print("\n| service | s from its start to healthy |\n|---|---|")
    started: dict[str, int] = {}
    for line in told:
        event = json.loads(line)
        service, action = event["Actor"]["Attributes"]["com.docker.compose.service"], event["Action"]
        if action == "start":
            started[service] = event["timeNano"]
        elif action == "health_status: healthy" and service in started:
            print(f"| {service} | {(event['timeNano'] - started.pop(service)) / 1e9:.0f} |", flush=True)


if __name__ == "__main__":
    main()

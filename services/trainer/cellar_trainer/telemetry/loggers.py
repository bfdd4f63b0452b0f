"""Where metrics go besides the run's own files: Weights & Biases and trackio, for who asks for them and has them."""

import importlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

from cellar_trainer.types import Metrics

Destination = Literal["wandb", "trackio"]
ID_FILE = "run-id"

_log = logging.getLogger(__name__)


class LoggerUnavailable(Exception):
    """A logger that was asked for is not installed, or did not start."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    to: tuple[Destination, ...] = ()
    """Besides metrics.jsonl and TensorBoard's files, which there always are."""
    project: str = "cellar"
    """Under which they file the run."""
    name: str = ""
    """Of the run; the name of its folder when left out."""


class MetricsLogger(Protocol):
    """What a run's metrics are passed on to. Any of its methods may raise anything."""

    name: str

    def step(self, step: int, metrics: Metrics) -> None: ...

    def close(self, *, failed: bool) -> None:
        """The run is over; `failed` when it was an error that ended it."""


class Loggers:
    """Loggers that never stop a run: one that fails is warned of once, and its failures are counted.

    Attributes:
        failures: calls that each logger failed so far.
    """

    def __init__(self, *loggers: MetricsLogger) -> None:
        self._loggers: list[MetricsLogger] = []
        self.failures: dict[str, int] = {}
        for logger in loggers:
            self.add(logger)

    def add(self, logger: MetricsLogger) -> None:
        self._loggers.append(logger)
        self.failures[logger.name] = 0

    def step(self, step: int, metrics: Metrics) -> None:
        for logger in self._loggers:
            with self._forgiven(logger):
                logger.step(step, metrics)

    def close(self, *, failed: bool) -> None:
        for logger in self._loggers:
            with self._forgiven(logger):
                logger.close(failed=failed)

    @contextmanager
    def _forgiven(self, logger: MetricsLogger) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failures[logger.name] += 1
            if self.failures[logger.name] == 1:
                _log.warning("%s failed; from now on its failures are only counted: %r", logger.name, error)


@contextmanager
def open_loggers(options: LogOptions, directory: Path, config: Mapping[str, Any]) -> Iterator[Loggers]:
    """Those of `options.to`. The folder is the run: who resumes in it goes on with the same id.

    Raises:
        LoggerUnavailable: One of them is not installed or does not start.
    """
    loggers = Loggers()
    failed = True
    try:
        for destination in options.to:
            loggers.add(_open(destination, options, directory, config))
        yield loggers
        failed = False
    finally:
        loggers.close(failed=failed)


def _open(destination: Destination, options: LogOptions, directory: Path, config: Mapping[str, Any]) -> MetricsLogger:
    name = options.name or directory.resolve().name
    try:
        return OPENERS[destination](options.project, name, _run_id(directory, name), directory, config)
    except Exception as error:  # whatever a logger's start may raise, it is said in one line
        raise LoggerUnavailable(_explain(destination, error)) from error


class Wandb:
    name = "wandb"

    def __init__(self, project: str, name: str, run_id: str, directory: Path, config: Mapping[str, Any]) -> None:
        init = importlib.import_module("wandb").init
        self._run = init(project=project, name=name, id=run_id, resume="allow", dir=str(directory), config=dict(config))

    def step(self, step: int, metrics: Metrics) -> None:
        """Of a step that comes again after a resume, W&B keeps what it was told first."""
        self._run.log(dict(metrics), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio:
    name = "trackio"

    def __init__(self, project: str, name: str, run_id: str, directory: Path, config: Mapping[str, Any]) -> None:
        # To trackio a run's name is its identity.
        init = importlib.import_module("trackio").init
        self._run = init(project=project, name=run_id, resume="allow", config=dict(config))

    def step(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish()


OPENERS: Mapping[Destination, Callable[[str, str, str, Path, Mapping[str, Any]], MetricsLogger]] = {
    "wandb": Wandb,
    "trackio": Trackio,
}


def _run_id(directory: Path, name: str) -> str:
    """Unlike that of any other run, and kept in the run's folder."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ID_FILE
    if not path.exists():
        legible = re.sub(r"[^\w.-]+", "-", name)
        path.write_text(f"{legible}-{uuid4().hex[:8]}\n")
    return path.read_text().strip()


def _explain(destination: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == destination:
        return f"log.to: {destination} is not installed (pip install {destination})"
    return f"log.to: {destination} did not start: {error}"

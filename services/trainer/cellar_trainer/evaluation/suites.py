"""What is evaluated: sets of problems, named by a suite, or taken from task files as they are."""

import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cellar_trainer.data import hub
from cellar_trainer.data.tasks import TaskFileError, load_tasks, task_files
from cellar_trainer.evaluation.options import EvalOptions
from cellar_trainer.types import Task

SUITES = files("cellar_trainer.evaluation") / "suites"
SAMPLE_SEED = 42


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Problems that are scored together."""

    name: str
    tasks: tuple[Task, ...]
    n: int
    """Trajectories per problem."""


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    sets: tuple[TaskSet, ...]


class SuiteError(ValueError):
    """A suite that cannot be read; the message names the file and the mistake."""


class _Set(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    path: str
    """Relative to the data folder, or a name on the hub."""
    n: Annotated[int, Field(ge=1)] = 1
    sample: Annotated[int, Field(ge=1)] | None = None
    """Only so many problems, chosen at random but always the same."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    set: Annotated[list[_Set], Field(min_length=1)]


def load_suite(options: EvalOptions) -> Suite:
    """The sets that `options.suite` stands for, with all their problems.

    Raises `SuiteError`, `TaskFileError`, and `OSError` when a file is not there.
    """
    assert options.suite is not None, "without a suite there is nothing to load"
    if options.suite.endswith(".toml"):
        suite = _read(Path(options.suite).stem, Path(options.suite).read_text(encoding="utf-8"), options.data)
    elif (SUITES / f"{options.suite}.toml").is_file():
        suite = _read(options.suite, (SUITES / f"{options.suite}.toml").read_text(encoding="utf-8"), options.data)
    else:
        suite = _from_task_files(options.suite)
    sets = tuple(replace(s, n=options.n or s.n, tasks=s.tasks[: options.limit]) for s in suite.sets)
    _check(suite.name, sets)
    return Suite(suite.name, sets)


def shipped_suites() -> list[str]:
    """The names of the suites that come with the trainer."""
    return sorted(entry.name.removesuffix(".toml") for entry in SUITES.iterdir() if entry.name.endswith(".toml"))


def _read(name: str, text: str, data: Path) -> Suite:
    try:
        rows = _File.model_validate(tomllib.loads(text)).set
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"suite {name}: {error}") from error
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SuiteError(f"suite {name}: {mistakes}") from error
    return Suite(name, tuple(_task_set(row, data) for row in rows))


def _task_set(row: _Set, data: Path) -> TaskSet:
    tasks = load_tasks(row.path if row.path.startswith(hub.SCHEME) else data / row.path)
    if row.sample is not None and row.sample < len(tasks):
        # What pandas' DataFrame.sample(n, random_state=42) takes, which is how the reference cuts its large sets.
        chosen = numpy.random.RandomState(SAMPLE_SEED).choice(len(tasks), size=row.sample, replace=False)
        tasks = [tasks[i] for i in sorted(chosen)]
    return TaskSet(row.name, tuple(tasks), row.n)


def _from_task_files(path: str) -> Suite:
    """A file is a set, a folder one of each file; a split on the hub is one set, however many files it lies in."""
    if path.startswith(hub.SCHEME):
        return Suite(path, (TaskSet(path.removeprefix(hub.SCHEME), tuple(load_tasks(path)), 1),))
    if not Path(path).exists():
        raise SuiteError(f"{path}: no such suite, file or folder; suites are {', '.join(shipped_suites())}")
    found = task_files(path)
    return Suite(Path(path).stem, tuple(TaskSet(file.stem, tuple(load_tasks(file)), 1) for file in found))


def _check(name: str, sets: tuple[TaskSet, ...]) -> None:
    for twice in _repeated(s.name for s in sets):
        raise SuiteError(f"suite {name}: two sets are called {twice}")
    for task_set in sets:
        if not task_set.tasks:
            raise TaskFileError(f"{task_set.name} holds no task")
        for twice in _repeated(task.task_id for task in task_set.tasks):
            raise TaskFileError(f"{task_set.name}: two tasks have the id {twice}")


def _repeated(names: Iterator[str]) -> Iterator[str]:
    return (name for name, count in Counter(names).items() if count > 1)

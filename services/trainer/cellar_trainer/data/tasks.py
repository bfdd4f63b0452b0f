"""Problem files into tasks: parquet or JSON lines, as training sets and benchmarks publish them."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import isnan
from pathlib import Path
from typing import Annotated, Any

import pyarrow
import pyarrow.parquet
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cellar_trainer.data import hub
from cellar_trainer.types import Task

_log = logging.getLogger(__name__)

NonEmpty = Annotated[str, Field(min_length=1)]


def _no_answer(value: Any) -> Any:
    """Tables have nothing, or not-a-number, where there is no answer."""
    return "" if value is None or (isinstance(value, float) and isnan(value)) else value


Answer = Annotated[str, BeforeValidator(_no_answer)]


@dataclass(frozen=True, slots=True)
class TaskOptions:
    path: str
    """Problems to train on: a .parquet or .jsonl file, a folder of them, or a data set on the Hugging Face hub:
    hf://datasets/ORG/NAME[@REVISION][/path/in/repo]."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many."""


class TaskFileError(ValueError):
    """Problems that cannot be read; the message names the file and the row."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)


class _PlainRow(_Row):
    problem: NonEmpty
    answer: Answer
    id: NonEmpty | None = None
    source: str = ""

    def task(self, fallback_id: str) -> Task:
        return Task(self.id or fallback_id, self.problem, self.answer, self.source)


class _Message(_Row):
    content: NonEmpty


class _RewardModel(_Row):
    ground_truth: Answer


class _ChatRow(_Row):
    prompt: Annotated[list[_Message], Field(min_length=1, max_length=1)]
    reward_model: _RewardModel
    data_source: str = ""

    def task(self, fallback_id: str) -> Task:
        return Task(fallback_id, self.prompt[0].content, self.reward_model.ground_truth, self.data_source)


_COLUMNS = [*_PlainRow.model_fields, *_ChatRow.model_fields]


def load_tasks(path: str | Path, *, limit: int | None = None) -> list[Task]:
    """Read the first `limit` problems of a file, of a folder's files by name, or of a data set on the hub.

    A row has either `problem` and `answer` (and perhaps `id` and `source`), or `prompt` (a list of one message) and
    `reward_model.ground_truth`. A row without an id is called "<file>:<row>": a data set's own index repeats between
    files. Problems without an answer are left out and counted in a warning, since published training sets have some.
    Raises `TaskFileError`, which names the first bad row, counted from 1, and `OSError` when there is no such file.
    """
    return list(islice((task for file in task_files(path) for task in _answered(file)), limit))


def task_files(path: str | Path) -> list[Path]:
    """The files that a path or a hub name stands for. Raises `TaskFileError`."""
    if isinstance(path, str) and path.startswith(hub.SCHEME):
        try:
            return hub.fetch(path, tuple(_READERS))
        except hub.HubError as error:
            raise TaskFileError(str(error)) from error
    place = Path(path)
    if not place.is_dir():
        return [place]
    files = sorted(file for file in place.iterdir() if file.suffix in _READERS)
    if not files:
        raise TaskFileError(f"{place}: the folder holds no {' or '.join(_READERS)} file")
    return files


def _answered(path: Path) -> Iterator[Task]:
    left_out = []
    try:
        for number, row in _rows(path):
            task = _task(path, number, row)
            if task.answer.strip():
                yield task
            else:
                left_out.append(number)
    finally:  # also when no more rows are wanted
        if left_out:
            shown = ", ".join(map(str, left_out[:5])) + (", ..." if len(left_out) > 5 else "")
            _log.warning("%s: left out, as there is no answer: %d, row %s", path, len(left_out), shown)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix not in _READERS:
        raise TaskFileError(f"{path}: expected one of {', '.join(_READERS)}, not {path.suffix or 'no suffix'!r}")
    try:
        yield from _READERS[path.suffix](path)
    except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
        raise TaskFileError(f"{path}: not a {path.suffix} file: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with pyarrow.parquet.ParquetFile(path) as file:
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        rows = (row for batch in file.iter_batches(columns=columns) for row in batch.to_pylist())
        yield from enumerate(rows, start=1)


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise TaskFileError(f"{path}: row {number}: not JSON: {error}") from error


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {".parquet": _parquet_rows, ".jsonl": _json_rows}


def _task(path: Path, number: int, row: Any) -> Task:
    kind = _ChatRow if isinstance(row, dict) and "prompt" in row else _PlainRow
    try:
        return kind.model_validate(row).task(f"{path.stem}:{number}")
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors())
        raise TaskFileError(f"{path}: row {number}: {problems}") from error

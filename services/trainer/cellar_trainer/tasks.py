"""Problem files into tasks: parquet or JSON lines, as training sets and benchmarks publish them."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cellar_trainer.types import Task

_log = logging.getLogger(__name__)

NonEmpty = Annotated[str, Field(min_length=1)]


class TaskFileError(ValueError):
    """A problem file that cannot be read; the message names the file and the row."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)


class _PlainRow(_Row):
    problem: NonEmpty
    answer: str
    id: NonEmpty | None = None
    source: str = ""

    def task(self, fallback_id: str) -> Task:
        return Task(self.id or fallback_id, self.problem, self.answer, self.source)


class _Message(_Row):
    content: NonEmpty


class _RewardModel(_Row):
    ground_truth: str


class _ChatRow(_Row):
    prompt: Annotated[list[_Message], Field(min_length=1, max_length=1)]
    reward_model: _RewardModel
    data_source: str = ""

    def task(self, fallback_id: str) -> Task:
        return Task(fallback_id, self.prompt[0].content, self.reward_model.ground_truth, self.data_source)


_COLUMNS = [*_PlainRow.model_fields, *_ChatRow.model_fields]


def load_tasks(path: Path, *, limit: int | None = None) -> list[Task]:
    """Read the first `limit` problems of a .parquet or .jsonl file.

    A row has either `problem` and `answer` (and perhaps `id` and `source`), or `prompt` (a list of one message) and
    `reward_model.ground_truth`. A row without an id is called "<file>:<row>": a data set's own index repeats between
    files. A problem without an answer is left out with a warning, since published training sets have some. Raises
    `TaskFileError` naming the first bad row, counted from 1, and `OSError` when there is no such file.
    """
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {".parquet": _parquet_rows, ".jsonl": _json_rows}
    if path.suffix not in readers:
        raise TaskFileError(f"{path}: expected one of {', '.join(readers)}, not {path.suffix or 'no suffix'!r}")
    tasks = (_task(path, number, row) for number, row in readers[path.suffix](path))
    return list(islice(_answered(path, tasks), limit))


def _answered(path: Path, tasks: Iterable[Task]) -> Iterator[Task]:
    for task in tasks:
        if task.answer.strip():
            yield task
        else:
            _log.warning("%s: task %s has no answer and is left out", path, task.task_id)


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


def _task(path: Path, number: int, row: Any) -> Task:
    kind = _ChatRow if isinstance(row, dict) and "prompt" in row else _PlainRow
    try:
        return kind.model_validate(row).task(f"{path.stem}:{number}")
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors())
        raise TaskFileError(f"{path}: row {number}: {problems}") from error

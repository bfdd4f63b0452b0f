import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cellar_trainer.data.tasks import TaskFileError, load_tasks
from cellar_trainer.types import Task

DATA = Path(os.environ.get("CELLAR_DATA", Path(__file__).parents[4] / "shared" / "data"))
CHAT_ROW: dict[str, Any] = {
    "data_source": "set",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 0},
}


def jsonl(folder: Path, *lines: str) -> Path:
    path = folder / "set.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_json_lines_with_problem_and_answer(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path, '{"problem": "1+1?", "answer": 2}', "", '{"problem": "ü", "answer": "3", "id": "x", "source": "y"}'
    )

    assert load_tasks(path) == [Task("set:1", "1+1?", "2"), Task("x", "ü", "3", "y")]


def test_json_lines_with_the_columns_of_a_training_set(tmp_path: Path) -> None:
    assert load_tasks(jsonl(tmp_path, json.dumps(CHAT_ROW))) == [Task("set:1", "1+1?", "2", "set")]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([CHAT_ROW, {**CHAT_ROW, "unknown": 1}]), path)

    assert load_tasks(path) == [Task("set:1", "1+1?", "2", "set"), Task("set:2", "1+1?", "2", "set")]
    assert len(load_tasks(path, limit=1)) == 1


def test_problems_without_an_answer_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = jsonl(tmp_path, *['{"problem": "a", "answer": " "}'] * 6, *['{"problem": "b", "answer": "1"}'] * 2)

    assert [task.problem for task in load_tasks(path, limit=1)] == ["b"]
    assert "set.jsonl: left out, as there is no answer: 6, row 1, 2, 3, 4, 5, ..." in caplog.text


@pytest.mark.parametrize("answer", [None, float("nan")])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_answer_of_null_or_nan_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: float | None, suffix: str
) -> None:
    rows: dict[str, list[dict[str, Any]]] = {
        "plain": [{"problem": "a", "answer": a} for a in (answer, 0.5)],
        "chat": [{**CHAT_ROW, "reward_model": {"ground_truth": a}} for a in (answer, 0.5)],
    }
    for name, pair in rows.items():
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in pair))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pair), path)
        assert [task.answer for task in load_tasks(path)] == ["0.5"]
        assert f"{path}: left out, as there is no answer: 1, row 1" in caplog.text


def test_a_folder_stands_for_its_files_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        jsonl(tmp_path, f'{{"problem": "{name}", "answer": "1"}}').rename(tmp_path / f"{name}.jsonl")
    (tmp_path / "README.md").write_text("not problems")

    assert [task.task_id for task in load_tasks(str(tmp_path))] == ["a:1", "b:1"]
    assert [task.task_id for task in load_tasks(tmp_path, limit=1)] == ["a:1"]


def test_a_folder_without_problems_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match=r"the folder holds no \.parquet or \.jsonl file"):
        load_tasks(tmp_path)


@pytest.mark.parametrize("name", ["set.parquet", "set.jsonl"])
def test_a_file_that_is_not_what_it_is_called_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe not at all")

    with pytest.raises(TaskFileError, match=rf"{name}: not a \{name[3:]} file: "):
        load_tasks(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"problem": "1+1?"}', "row 2: answer: Field required"),
        ('{"problem": "", "answer": "2"}', "row 2: problem: "),
        ("[1]", "row 2: row: "),
        ("{", "row 2: not JSON"),
        (json.dumps({**CHAT_ROW, "prompt": []}), "row 2: prompt: "),
        (json.dumps({**CHAT_ROW, "prompt": CHAT_ROW["prompt"] * 2}), "row 2: prompt: "),
        (json.dumps({**CHAT_ROW, "reward_model": {}}), "row 2: reward_model.ground_truth: "),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(TaskFileError, match="set.jsonl: " + message):
        load_tasks(jsonl(tmp_path, '{"problem": "1+1?", "answer": "2"}', row))


def test_parquet_without_the_columns_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["1+1?"], "source": ["x"]}), path)

    with pytest.raises(TaskFileError, match="row 1: problem: Field required; answer: Field required"):
        load_tasks(path)


@pytest.mark.parametrize("name", ["set.csv", "set"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TaskFileError, match=r"expected one of \.parquet, \.jsonl"):
        load_tasks(tmp_path / name)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_tasks(tmp_path / "set.parquet")


@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark files; point CELLAR_DATA at their folder")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("aime24", 30),
        ("aime25", 30),
        ("amc23", 40),
        ("hmmt25", 30),
        ("math500", 500),
        ("olympiad", 674),
        ("simplelr_math_35_train", 8521),  # of 8523 rows, two have an empty ground truth
    ],
)
def test_real_files_load_whole(name: str, count: int) -> None:
    tasks = load_tasks(DATA / f"{name}.parquet")

    assert len({task.task_id for task in tasks}) == count
    assert all(task.problem and task.answer and task.source for task in tasks)

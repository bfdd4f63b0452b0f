"""What a suite, a file, a folder stands for, and mistakes that are named."""

import json
import os
from pathlib import Path

import numpy
import pytest

from cellar_trainer.data.tasks import TaskFileError
from cellar_trainer.evaluation.options import EvalOptions
from cellar_trainer.evaluation.suites import SuiteError, load_suite, shipped_suites

DATA = Path(os.environ.get("CELLAR_DATA", Path(__file__).parents[4] / "shared" / "data"))


def write(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"problem": f"p{i}", "answer": "1"}) + "\n" for i in range(count)))
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/small.jsonl", 3)
    write(tmp_path / "data/large.jsonl", 674)
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[set]]\nname = "s"\npath = "small.jsonl"\nn = 4\n'
        '[[set]]\nname = "l"\npath = "large.jsonl"\nsample = 500\n'
    )  # fmt: skip
    return path


def sizes(options: EvalOptions) -> list[tuple[str, int, int]]:
    return [(s.name, len(s.tasks), s.n) for s in load_suite(options).sets]


def test_a_suite_says_what_is_played_and_options_change_it(suite: Path) -> None:
    data = suite.parent / "data"
    assert load_suite(EvalOptions(str(suite), data)).name == "mine"
    assert sizes(EvalOptions(str(suite), data)) == [("s", 3, 4), ("l", 500, 1)]
    assert sizes(EvalOptions(str(suite), data, n=2, limit=2)) == [("s", 2, 2), ("l", 2, 2)]


def test_the_problems_of_a_large_set_are_those_of_the_reference(suite: Path) -> None:
    """pandas.DataFrame.sample(500, random_state=42) takes the first 500 of this permutation."""
    expected = {f"large:{i + 1}" for i in numpy.random.RandomState(42).permutation(674)[:500]}
    assert {
        task.task_id for task in load_suite(EvalOptions(str(suite), suite.parent / "data")).sets[1].tasks
    } == expected


def test_a_file_is_a_set_and_a_folder_one_of_each_file(suite: Path) -> None:
    data = suite.parent / "data"
    assert sizes(EvalOptions(str(data / "small.jsonl"), n=5)) == [("small", 3, 5)]
    assert sizes(EvalOptions(str(data), limit=9)) == [("large", 9, 1), ("small", 3, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "suite mine: set: Field required"),
        ("set = []", "suite mine: set: List should have at least 1 item"),
        ("[[set]", "suite mine: .*line 1"),
        ('[[set]]\nname = "s"', "suite mine: set.0.path: Field required"),
        ('[[set]]\nname = "s"\npath = "small.jsonl"\nm = 1', "suite mine: set.0.m: Extra inputs"),
        ('[[set]]\nname = "s"\npath = "small.jsonl"\nn = 0', "suite mine: set.0.n: .* greater than or equal to 1"),
        ('[[set]]\nname = "s"\npath = "small.jsonl"\n' * 2, "suite mine: two sets are called s"),
    ],
)
def test_a_mistake_in_a_suite_is_named(suite: Path, text: str, message: str) -> None:
    suite.write_text(text)
    with pytest.raises(SuiteError, match=message):
        load_suite(EvalOptions(str(suite), suite.parent / "data"))


def test_what_is_not_there_is_said(suite: Path) -> None:
    with pytest.raises(SuiteError, match="math7: no such suite, file or folder; suites are math6"):
        load_suite(EvalOptions("math7"))
    with pytest.raises(FileNotFoundError, match=r"elsewhere/small\.jsonl"):
        load_suite(EvalOptions(str(suite), Path("elsewhere")))


def test_problems_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"problem": "p", "answer": "1", "id": "x"}\n' * 2)
    with pytest.raises(TaskFileError, match="t: two tasks have the id x"):
        load_suite(EvalOptions(str(path)))
    path.write_text("\n")
    with pytest.raises(TaskFileError, match="t holds no task"):
        load_suite(EvalOptions(str(path)))


@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark files; point CELLAR_DATA at their folder")
def test_the_suite_of_the_paper_is_shipped() -> None:
    assert shipped_suites() == ["math6"]
    assert sizes(EvalOptions("math6", DATA)) == [
        *(("aime24", 30, 32), ("aime25", 30, 32), ("amc23", 40, 32), ("hmmt25", 30, 32)),
        *(("math500", 500, 8), ("olympiad", 500, 8)),
    ]

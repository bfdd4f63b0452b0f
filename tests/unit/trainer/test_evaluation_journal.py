"""An evaluation's folder keeps what was played, through a kill, and refuses what it was not made for."""

import json
from pathlib import Path
from typing import Any

import pytest

from cellar_trainer.config import parse_config
from cellar_trainer.evaluation.journal import Journal, OtherEvaluation, settings
from cellar_trainer.evaluation.play import Sample
from cellar_trainer.evaluation.suites import Suite, TaskSet
from cellar_trainer.rollouts.rendering import Renderer, RenderingOptions
from cellar_trainer.types import Segment, SegmentKind, StopReason, Task, Trajectory
from tests.tiny_model import tiny_tokenizer

RENDERER = Renderer(tiny_tokenizer(), RenderingOptions(prompt="{problem}", chat_template=False))
SETTINGS = {"seed": 0, "sets": {"s": {"n": 2}}}


def played(number: int) -> tuple[Sample, Trajectory]:
    segments = [
        Segment(SegmentKind.PROMPT, (1, 2)),
        Segment(SegmentKind.SAMPLED, (3,), (-1.0,), (-1.0,), policy_versions=(7,)),
    ]
    trajectory = Trajectory(
        Task("t", "p", "1"), segments, StopReason.ANSWERED, "ü\n", correct=True, grade="correct", runs=2, cells=3
    )
    return Sample.of(("s", "t", number), trajectory), trajectory


def fill(folder: Path, numbers: range) -> list[Sample]:
    with Journal(folder, SETTINGS) as journal:
        for number in numbers:
            journal.add(*played(number), RENDERER)
        return journal.samples


def test_what_was_added_is_there_the_next_time(tmp_path: Path) -> None:
    first = fill(tmp_path / "new/folder", range(2))
    assert fill(tmp_path / "new/folder", range(2, 3)) == [*first, played(2)[0]]
    row = json.loads((tmp_path / "new/folder/trajectories.jsonl").read_text().splitlines()[0])
    assert (row["set"], row["task_id"], row["number"], row["tokens"], row["answer"]) == ("s", "t", 0, 3, "ü\n")
    assert row["segments"][0]["token_ids"] == [1, 2]
    assert row["policy_versions"] == [7, 7]


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_that_a_kill_cut_short_is_taken_away(tmp_path: Path, cut: int) -> None:
    samples = fill(tmp_path, range(2))
    path = tmp_path / "trajectories.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert fill(tmp_path, range(0)) == samples[:1]
    assert fill(tmp_path, range(1, 2)) == samples
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2


def test_a_line_is_on_disk_before_the_next_trajectory(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add(*played(0), RENDERER)
        assert (tmp_path / "trajectories.jsonl").read_text().endswith("\n")


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    fill(tmp_path, range(1))
    before = (tmp_path / "settings.json").read_text()
    with pytest.raises(OtherEvaluation, match=r"seed is 1, was 0; sets\.s\.n is 3, was 2\); name another folder"):
        Journal(tmp_path, {"seed": 1, "sets": {"s": {"n": 3}}})
    assert (tmp_path / "settings.json").read_text() == before


def test_settings_may_change_as_long_as_nothing_was_played(tmp_path: Path) -> None:
    fill(tmp_path, range(0))
    Journal(tmp_path, {"seed": 1}).__exit__(None, None, None)
    assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": 1}


def test_trajectories_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "trajectories.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(OtherEvaluation, match="holds trajectories of something else"):
        Journal(tmp_path, SETTINGS)
    assert (tmp_path / "trajectories.jsonl").read_text() == '{"step": 1}\n'


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS), pytest.raises(OtherEvaluation, match="another process is writing"):
        Journal(tmp_path, SETTINGS)
    fill(tmp_path, range(1))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"policy": {"url": "http://elsewhere", "api_key": "secret"}}, True),
        ({"rollout": {"concurrency": 3}}, True),
        ({"executor": {"url": "http://elsewhere"}}, True),
        ({"output": "elsewhere"}, True),
        ({"rollout": {"temperature": 0.5}}, False),
        ({"model": {"path": "other"}}, False),
        ({"policy": {"kind": "local"}}, False),
        ({"eval": {"seed": 1}}, False),
    ],
)
def test_settings_are_what_the_numbers_depend_on(change: dict[str, Any], same: bool) -> None:
    base: dict[str, Any] = {
        "output": "o",
        "model": {"path": "m"},
        "tasks": {"path": "t"},
        "objective": {"name": "grpo"},
    }
    suite = Suite("mine", (TaskSet("s", (Task("t", "p", "1"),), 2),))
    first, second = (settings(parse_config(tables), suite, "7") for tables in (base, {**base, **change}))
    assert (first == second) is same
    assert "secret" not in json.dumps(second)


def test_settings_see_a_changed_problem() -> None:
    config = parse_config({"output": "o", "model": {"path": "m"}, "tasks": {"path": "t"}})
    one, other = (settings(config, Suite("m", (TaskSet("s", (Task("t", "p", a),), 2),)), "7") for a in "12")
    assert one != other


def test_trajectories_of_other_weights_are_refused(tmp_path: Path) -> None:
    config = parse_config({"output": "o", "model": {"path": "m"}, "tasks": {"path": "t"}})
    before, now = (settings(config, Suite("m", ()), label) for label in ("7", "8"))
    with Journal(tmp_path, before) as journal:
        journal.add(*played(0), RENDERER)
    with pytest.raises(OtherEvaluation, match=r"\(policy\.weights is 8, was 7\); name another folder"):
        Journal(tmp_path, now)

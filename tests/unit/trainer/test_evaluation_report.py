"""A report, number by number, and the page made of it."""

from typing import Any

import pytest

from cellar_trainer.evaluation.markdown import markdown
from cellar_trainer.evaluation.play import Sample
from cellar_trainer.evaluation.report import metrics, report
from cellar_trainer.evaluation.suites import Suite, TaskSet
from cellar_trainer.types import Task

SUITE = Suite(
    "two",
    (
        TaskSet("hard", tuple(Task(name, "", "") for name in ("a", "b|c", "d")), 2),
        TaskSet("easy", (Task("e", "", ""),), 1),
    ),
)
SETTINGS = {"model": {"path": "models/m"}, "policy": {"weights": "7"}, "rollout": {"temperature": 1.0}}


def sample(task_set: str, task_id: str, number: int, correct: bool, **values: Any) -> Sample:
    told: dict[str, Any] = {"grade": "correct" if correct else "wrong", "stop_reason": "answered", "tokens": 100}
    told |= {"runs": 0, "cells": 0, "deferred_cells": 0, "unrun_cells": 0}
    return Sample(task_set, task_id, number, correct, **{**told, **values})


SAMPLES = [
    sample("hard", "a", 0, True, runs=1, cells=4, deferred_cells=3, tokens=50),
    sample("hard", "a", 1, True, runs=1, cells=1),
    sample("hard", "b|c", 0, False, grade="no_answer", stop_reason="void"),
    sample("easy", "e", 0, True, unrun_cells=2),
]


def test_every_number_by_hand() -> None:
    found = report(SUITE, SAMPLES, seed=0)
    hard, easy = found["sets"]["hard"], found["sets"]["easy"]
    assert (hard["n"], hard["problems"], hard["problems_without_any"], hard["trajectories"], hard["dropped"]) == (
        *(2, 3, 1, 3, 3),
    )
    assert {name: estimate["value"] for name, estimate in hard["estimates"].items()} == {"avg@2": 0.5, "pass@2": 1.0}
    assert {name: estimate["value"] for name, estimate in easy["estimates"].items()} == {"avg@1": 1.0}
    assert hard["estimates"]["avg@2"]["interval"] == [0.0, 1.0]
    assert found["score"]["value"] == 0.75
    assert found["score"]["interval"] == [0.5, 1.0]
    assert hard["executions"] == pytest.approx(2 / 3)
    assert hard["deferral"] == pytest.approx(3 / 5)
    assert (hard["cells"], easy["unrun_cells"]) == (pytest.approx(5 / 3), 2)
    assert hard["stop_reasons"] == {"answered": 2, "void": 1}
    assert hard["grades"] == {"correct": 2, "no_answer": 1}
    assert hard["by_problem"][0] == {
        **{"task_id": "a", "trajectories": 2, "correct": 2, "solve_rate": 1.0, "executions": 1.0},
        **{"deferral": 0.6, "cells": 2.5, "unrun_cells": 0.0, "tokens": 75.0},
    }
    assert hard["by_problem"][2]["solve_rate"] is None


def test_a_set_without_any_trajectory_leaves_the_suite_without_a_score() -> None:
    found = report(SUITE, SAMPLES[:3], seed=0)
    assert found["score"] is None
    assert found["sets"]["easy"]["estimates"]["avg@1"] == {"value": None, "interval": None}
    assert "eval/score" not in metrics(found)
    assert "**Score –**" in markdown(found, SETTINGS)


def test_the_metrics_of_a_training_step() -> None:
    found = metrics(report(SUITE, SAMPLES, seed=0))
    assert found["eval/score"] == 0.75
    assert (found["eval/hard/avg@2"], found["eval/hard/pass@2"], found["eval/easy/avg@1"]) == (0.5, 1.0, 1.0)
    assert (found["eval/hard/dropped"], found["eval/easy/tokens"]) == (3.0, 100.0)


PAGE = r"""# Evaluation: two

Model models/m, weights 7, temperature 1.0, seed 0. In brackets: 95 % bootstrap intervals, problems resampled.

**Score 0.750 [0.500, 1.000]**, the plain mean over the sets.

| set | problems | avg@n | pass@k | executions | deferral | tokens | dropped |
| --- | --- | --- | --- | --- | --- | --- | --- |
| hard | 3 | avg@2 0.500 [0.000, 1.000] | pass@2 1.000 [1.000, 1.000] | 0.67 | 0.60 | 83 | 3 |
| easy | 1 | avg@1 1.000 [1.000, 1.000] |  | 0.00 | 0.00 | 100 | 0 |

| set | stop reasons | grades |
| --- | --- | --- |
| hard | answered 2, void 1 | correct 2, no_answer 1 |
| easy | answered 1 | correct 1 |

## hard

| problem | correct | solve rate | executions | deferral | tokens |
| --- | --- | --- | --- | --- | --- |
| a | 2 of 2 | 1.000 | 1.00 | 0.60 | 75 |
| b\|c | 0 of 1 | 0.000 | 0.00 | 0.00 | 100 |
| d | 0 of 0 | – | – | – | – |

## easy

| problem | correct | solve rate | executions | deferral | tokens |
| --- | --- | --- | --- | --- | --- |
| e | 1 of 1 | 1.000 | 0.00 | 0.00 | 100 |
"""


def test_the_page() -> None:
    assert markdown(report(SUITE, SAMPLES, seed=0), SETTINGS) == PAGE


def test_a_report_depends_on_nothing_but_the_samples_and_the_seed() -> None:
    more = Suite("more", (*SUITE.sets, TaskSet("third", (Task("f", "", ""),), 1)))
    one, other = report(SUITE, SAMPLES, seed=3), report(more, SAMPLES[::-1], seed=3)
    assert one["sets"]["hard"]["estimates"] == other["sets"]["hard"]["estimates"]

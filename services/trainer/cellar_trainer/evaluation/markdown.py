"""A report as a page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown(report: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The score, a table of the sets, how trajectories ended, and every problem."""
    lines = [
        f"# Evaluation: {report['suite']}",
        "",
        f"Model {settings['model']['path']}, weights {settings['policy']['weights']}, temperature "
        f"{settings['rollout']['temperature']}, seed {report['seed']}. "
        "In brackets: 95 % bootstrap intervals, problems resampled.",
        "",
        f"**Score {_estimate(report['score'])}**, the plain mean over the sets.",
        "",
        *_table(SET_COLUMNS, set_rows(report)),
        "",
        *_table(("set", "stop reasons", "grades"), (_ends_row(name, e) for name, e in report["sets"].items())),
    ]
    for name, entry in report["sets"].items():
        lines += ["", f"## {name}", "", *_table(PROBLEM_COLUMNS, map(_problem_row, entry["by_problem"]))]
    return "\n".join(lines) + "\n"


def set_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """One row of `SET_COLUMNS` per set."""
    return [_set_row(name, entry) for name, entry in report["sets"].items()]


SET_COLUMNS = ("set", "problems", "avg@n", "pass@k", "executions", "deferral", "tokens", "dropped")
PROBLEM_COLUMNS = ("problem", "correct", "solve rate", "executions", "deferral", "tokens")


def _set_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    estimates = entry["estimates"]
    average, *others = estimates
    return [
        name,
        str(entry["problems"]),
        f"{average} {_estimate(estimates[average])}",
        f"{others[-1]} {_estimate(estimates[others[-1]])}" if others else "",
        *_behaviour(entry),
        str(entry["dropped"]),
    ]


def _ends_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    return [
        name,
        *(", ".join(f"{key} {count}" for key, count in entry[of].items()) for of in ("stop_reasons", "grades")),
    ]


def _problem_row(problem: Mapping[str, Any]) -> list[str]:
    return [
        problem["task_id"],
        f"{problem['correct']} of {problem['trajectories']}",
        _number(problem["solve_rate"], ".3f"),
        *_behaviour(problem),
    ]


def _behaviour(entry: Mapping[str, Any]) -> list[str]:
    return [_number(entry[key], form) for key, form in (("executions", ".2f"), ("deferral", ".2f"), ("tokens", ".0f"))]


def _estimate(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    low, high = estimate["interval"]
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

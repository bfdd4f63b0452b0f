"""Samples by what was measured and by whom, and the table of them."""

import statistics
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Better = Literal["less", "more"]


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    unit: str
    target: float | None = None
    """To be reached by the first side; None is shown and not judged."""
    better: Better = "less"


@dataclass
class Results:
    samples: dict[Row, dict[str, list[float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, row: Row, who: str, value: float) -> None:
        self.samples.setdefault(row, {}).setdefault(who, []).append(value)

    @contextmanager
    def kept(self, row: Row, who: str) -> Iterator[None]:
        """A failure within is kept for the report instead of ending the run."""
        self.samples.setdefault(row, {}).setdefault(who, [])
        try:
            yield
        except Exception as error:
            self.failures.append(f"{row.what}, {who}: {type(error).__name__}: {str(error)[:300]}")
            traceback.print_exc()

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def table(results: Results, ours: str) -> str:
    sides = list(dict.fromkeys(who for by_who in results.samples.values() for who in by_who))
    others = [side for side in sides if side != ours]
    head = ["what", "target", f"{ours} p50 (p95, n)", "reached"]
    head += [column for other in others for column in (f"{other} p50", "ratio")]
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line(_cells(row, by_who, ours, others)) for row, by_who in results.samples.items()]
    lines += ["", *results.notes] if results.notes else []
    lines += ["", f"**{len(results.failures)} failures**", *(f"* {said}" for said in results.failures)] * bool(
        results.failures
    )
    return "\n".join(lines)


def _cells(row: Row, by_who: dict[str, list[float]], ours: str, others: list[str]) -> list[str]:
    sign = "<=" if row.better == "less" else ">="
    target = "" if row.target is None else f"{sign} {row.target:g} {row.unit}"
    mine = by_who.get(ours)
    cells = [row.what, target, _measured(row, mine, spread=True), _reached(row, mine)]
    for other in others:
        cells += [_measured(row, by_who.get(other), spread=False), _ratio(row, mine, by_who.get(other))]
    return cells


def _measured(row: Row, values: list[float] | None, *, spread: bool) -> str:
    if values is None:
        return ""
    if not values:
        return "failed"
    middle = f"{_short(statistics.median(values))} {row.unit}"
    if not spread or len(values) < 2:
        return middle
    return f"{middle} ({_short(statistics.quantiles(values, n=20, method='inclusive')[-1])}, {len(values)})"


def _reached(row: Row, values: list[float] | None) -> str:
    if row.target is None or values is None:
        return ""
    middle = statistics.median(values) if values else None
    reached = middle is not None and (middle <= row.target if row.better == "less" else middle >= row.target)
    return "yes" if reached else "**no**"


def _ratio(row: Row, mine: list[float] | None, theirs: list[float] | None) -> str:
    """How many times better we are."""
    if not mine or not theirs:
        return ""
    a, b = statistics.median(mine), statistics.median(theirs)
    better, worse = (a, b) if row.better == "less" else (b, a)
    return f"{_short(worse / better)}x" if better > 0 else ""


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

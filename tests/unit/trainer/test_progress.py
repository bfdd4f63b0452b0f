"""What a person sees."""

import io

import pytest
from rich.console import Console

from cellar_trainer.telemetry.progress import Progress


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def shown(*, terminal: bool, term: str = "") -> tuple[Progress, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    # What TERM says where the tests run must not matter.
    console = Console(file=out, force_terminal=terminal, width=200, highlight=False, _environ={"TERM": term})
    return Progress(console, clock), out, clock


def test_a_step_is_one_line_with_what_it_has() -> None:
    progress, out, _ = shown(terminal=False)
    progress.step(3, 20, {"reward_mean": 0.5, "deferral_rate": 0.25, "runs_per_trajectory": 1.5, "step_s": 2.04})
    assert out.getvalue() == "step  3/20  reward 0.500  deferral 0.25  runs 1.50  2.0 s  0:00:35 left\n"


def test_the_time_left_counts_all_that_happens_between_two_steps() -> None:
    progress, out, clock = shown(terminal=False)
    for step in range(1, 13):
        progress.step(step, 100, {"step_s": 1.0})
        clock.now_s += 2.0 if step < 11 else 22.0  # an evaluation
    progress.step(100, 100, {"step_s": 1.0})
    lefts = [line.split("  ")[-1] for line in out.getvalue().splitlines()]
    assert lefts[:2] == ["0:01:39 left", "0:02:27 left"]  # 1 s each; then 1.5 s
    assert lefts[11] == "0:05:52 left"  # the last ten: nine of 2 s and one of 22 s
    assert lefts[-1] == "0:00:00 left"


@pytest.mark.parametrize(("terminal", "term"), [(False, ""), (True, "dumb")])
def test_where_no_line_can_be_written_over_there_are_only_plain_ones(terminal: bool, term: str) -> None:
    progress, out, clock = shown(terminal=terminal, term=term)
    with progress.waiting("starting [x]"):
        pass
    with progress.counting("step 1") as count:
        count(1, 9)
        clock.now_s = 61
        count(2, 9)
        count(3, 9)
    assert out.getvalue() == "starting [x] ...\nstep 1  2/9\n"


def test_in_a_terminal_counts_are_shown_while_they_grow() -> None:
    progress, out, _ = shown(terminal=True)
    with progress.counting("step 1") as count:
        count(1, 2)
    assert "step 1  1/2" in out.getvalue()

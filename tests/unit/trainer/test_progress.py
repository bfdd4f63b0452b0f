"""What a person sees."""

import io

from rich.console import Console

from cellar_trainer.progress import Progress


def shown(*, terminal: bool) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    # No environment: what TERM says where the tests run must not matter.
    console = Console(file=out, force_terminal=terminal, width=200, highlight=False, _environ={})
    return Progress(console), out


def test_a_step_is_one_line_with_what_it_has() -> None:
    progress, out = shown(terminal=False)
    progress.step(3, 20, {"reward_mean": 0.5, "deferral_rate": 0.25, "runs_per_trajectory": 1.5, "step_s": 2.04})
    assert out.getvalue() == "step  3/20  reward 0.500  deferral 0.25  runs 1.50  2.0 s\n"


def test_outside_a_terminal_there_are_only_plain_lines() -> None:
    progress, out = shown(terminal=False)
    with progress.waiting("starting [x]"):
        pass
    with progress.counting("step 1") as count:
        count(1, 2)
    assert out.getvalue() == "starting [x] ...\n"


def test_in_a_terminal_counts_are_shown_while_they_grow() -> None:
    progress, out = shown(terminal=True)
    with progress.counting("step 1") as count:
        count(1, 2)
    assert "step 1  1/2" in out.getvalue()

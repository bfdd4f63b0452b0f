"""What a person sees while something takes long: a spinner and a live line in a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from statistics import fmean

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cellar_trainer.types import Metrics

LINE = (
    ("reward", "reward_mean", ".3f"),
    ("deferral", "deferral_rate", ".2f"),
    ("runs", "runs_per_trajectory", ".2f"),
    ("coefficient", "hierarchical_coefficient", ".4f"),
    ("loss", "policy_loss", "+.4f"),
    ("grad", "grad_norm", ".3f"),
)
"""What a step's line shows: label, metric, format. A metric that a step lacks is left out."""

COUNT_EVERY_S = 60.0
"""Between two plain lines that count."""
ETA_STEPS = 10
"""The last ones, whose mean says how long the rest will take."""


class Progress:
    """Writes to the error stream, so that a command's own output stays clean."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._finished_s: float | None = None
        self._steps_s: deque[float] = deque(maxlen=ETA_STEPS)

    @property
    def _live(self) -> bool:
        """Whether a line can be written over."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def say(self, message: str) -> None:
        self._console.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def waiting(self, message: str) -> Iterator[None]:
        """While something of unknown length goes on."""
        if not self._live:
            self.say(f"{message} ...")
            yield
            return
        with self._console.status(Text(message)):
            yield

    @contextmanager
    def counting(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """While things are counted: gives a function of (done, total), which shows them."""
        if not self._live:
            yield self._count_now_and_then(label)
            return
        with Live(Text(label, style="dim"), console=self._console, transient=True) as live:
            yield lambda done, total: live.update(Text(f"{label}  {done}/{total}", style="dim"))

    def _count_now_and_then(self, label: str) -> Callable[[int, int], None]:
        said_s = self._clock()

        def count(done: int, total: int) -> None:
            nonlocal said_s
            if self._clock() - said_s >= COUNT_EVERY_S:
                said_s = self._clock()
                self.say(f"{label}  {done}/{total}")

        return count

    def step(self, step: int, last: int, metrics: Metrics) -> None:
        """One finished step of training, on one line."""
        shown = [f"{label} {metrics[name]:{form}}" for label, name, form in LINE if name in metrics]
        duration_s = metrics.get("step_s", 0.0)
        left = timedelta(seconds=round(self._step_s(duration_s) * (last - step)))
        self.say("  ".join([f"step {step:>{len(str(last))}}/{last}", *shown, f"{duration_s:.1f} s", f"{left} left"]))

    def _step_s(self, duration_s: float) -> float:
        """Of a step on the average, evaluations and checkpoints included; `duration_s` is the last one's without."""
        now_s = self._clock()
        self._steps_s.append(duration_s if self._finished_s is None else now_s - self._finished_s)
        self._finished_s = now_s
        return fmean(self._steps_s)

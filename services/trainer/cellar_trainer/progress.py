"""What a person sees while something takes long: a spinner and a live line in a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


class Progress:
    """Writes to the error stream, so that a command's own output stays clean."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)

    def say(self, message: str) -> None:
        self._console.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def waiting(self, message: str) -> Iterator[None]:
        """While something of unknown length goes on."""
        if not self._console.is_terminal:
            self.say(f"{message} ...")
            yield
            return
        with self._console.status(Text(message)):
            yield

    @contextmanager
    def counting(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """While things are counted: gives a function of (done, total), which shows them. Silent outside a terminal."""
        if not self._console.is_terminal:
            yield lambda done, total: None
            return
        with Live(Text(label, style="dim"), console=self._console, transient=True) as live:
            yield lambda done, total: live.update(Text(f"{label}  {done}/{total}", style="dim"))

    def step(self, step: int, last: int, metrics: Metrics) -> None:
        """One finished step of training, on one line."""
        shown = "  ".join(f"{label} {metrics[name]:{form}}" for label, name, form in LINE if name in metrics)
        self.say(f"step {step:>{len(str(last))}}/{last}  {shown}  {metrics.get('step_s', 0.0):.1f} s")

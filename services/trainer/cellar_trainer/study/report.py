"""report.md, report.json and the plots: what came out, for people and for programs."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellar_trainer.study.jobs import Record, Settings
from cellar_trainer.study.logits import ETAS
from cellar_trainer.study.plots import plot_gates, plot_learning, plot_rates
from cellar_trainer.study.statistics import Interval
from cellar_trainer.study.summary import EARLY, GOAL, LAST, asked_for, of_stage, summarise
from cellar_trainer.study.training import SIBLINGS
from cellar_trainer.study.variants import AGAIN

_TEXT = """\
# Does the implicit policy behave like the explicit one?

{seeds} fresh seeds, {steps} steps of {trajectories} trajectories; learning rates chosen on {tuning_seeds} other seeds,
out of {rates}; one marked ^ lies at the edge of these, and a better one may lie beyond. Means and 95 % intervals over
seeds (Student's t). {hours} hours of work in all.

## Logits: plain gradient steps on both policies' own parameters

The largest difference of the gate's log-odds after {logit_steps} steps of size eta, and the mean KL of the gates;
float64, the worst of vocabularies of 2 to 200.

{logits}

## The common start

{start}

## Learning

{learning}

Reward: mean over all steps. End: the last {last} steps. A star: the interval of the difference to plain, paired by
seed, leaves out 0. Steps: median of those that reached {goal} (mean of 5 steps), and how many did. Coefficient: mean
|[i >= 1] - gamma|. Gradient: its norm before clipping; noise: the variance of a step's gradient over the squared norm
of its mean; both over the first {early} steps.

![Reward, step by step](learning.png)

![Reward by learning rate](rates.png)

## Beside the explicit policy of the same seed, each at its best learning rate

{alike}

KL of the gates after cells, in nats: on states of the common start, KL(explicit || variant), and over all sampled
symbols there; the same on the explicit policy's own trajectories; KL(variant || explicit) on the variant's. Agreement:
problems on which both ask for runs after the same cells, with common random numbers and greedily. `{again}` is the
explicit policy trained on other samples: the yardstick.

![KL of the gates, step by step](gates.png)

## The same at equal learning rates

KL(explicit || variant) after cells on the explicit policy's trajectories, then agreement; tuning seeds.

{alike_at_equal_rate}

## Gradients at the common start, on the same trajectories

{gradients}

Cosine: of the mean gradient to the explicit policy's, over the parameters below the heads.
"""


def write_report(
    out: Path, settings: Settings, records: Sequence[Record], rates: Mapping[str, float], fresh: Sequence[int]
) -> None:
    """Into `out`: report.md, report.json, learning.png, gates.png and rates.png; of these fresh seeds alone."""
    records = asked_for(settings, records, fresh)
    summary = summarise(settings, records, rates)
    (out / "report.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (out / "report.md").write_text(_markdown(summary, settings), encoding="utf-8")
    plot_learning(of_stage(records, "run"), out / "learning.png")
    at_best = [row for row in of_stage(records, "comparison") if not row["learning_rate"]]
    plot_gates(at_best, settings.mark_every, out / "gates.png")
    plot_rates(of_stage(records, "tuning"), out / "rates.png")


def _markdown(summary: Mapping[str, Any], settings: Settings) -> str:
    rates = [f"{rate:g}" for rate in settings.learning_rates]
    return _TEXT.format(
        seeds=len(summary["seeds"]),
        steps=settings.steps,
        trajectories=SIBLINGS * settings.problems,
        tuning_seeds=settings.tuning_seeds,
        rates=", ".join(rates),
        hours=summary["hours"],
        logit_steps=settings.logit_steps,
        logits=_table(summary["logits"], {f"eta {eta:g}": _logit_column(f"{eta:g}") for eta in ETAS}),
        start=_start(summary["starts"]),
        learning=_table(summary["learning"], _LEARNING),
        last=LAST,
        goal=GOAL,
        early=EARLY,
        alike=_table(summary["alike"], _ALIKE),
        again=AGAIN,
        alike_at_equal_rate=_table(summary["alike_at_equal_rate"], {rate: _equal_rate_column(rate) for rate in rates}),
        gradients=_table(summary["gradients"], _GRADIENTS),
    )


def _start(start: Mapping[str, Interval]) -> str:
    return (
        f"Reward {_show(start['reward_mean'])}; with its gate put right {_show(start['ceiling'])}; "
        f"runs {_show(start['runs_per_trajectory'])}; deferral {_show(start['deferral_rate'])}. "
        f"KL of the implicit gate to the explicit one {_show(start['gate_kl'], '.1e')}, "
        f"after cells {_show(start['kl_on_own'], '.1e')}; agreement {_show(start['agreement'])}."
    )


Column = Callable[[Mapping[str, Any]], str]

_LEARNING: dict[str, Column] = {
    "rate": lambda row: f"{row['learning_rate']:g}{'^' if row['at_edge'] else ''}",
    "reward": lambda row: _show(row["reward"]),
    "to plain": lambda row: _show(row["reward_to_plain"], "+.3f", star=True),
    "end": lambda row: _show(row["reward_end"]),
    "end to plain": lambda row: _show(row["reward_end_to_plain"], "+.3f", star=True),
    "steps": lambda row: f"{row['steps_to_goal'] or '-'} ({row['reached']})",
    "deferral": lambda row: _show(row["deferral_end"], ".2f"),
    "runs": lambda row: _show(row["runs_end"], ".2f"),
    "coefficient": lambda row: _show(row["coefficient_end"], ".4f"),
    "gradient": lambda row: _show(row["grad_norm"], ".2f"),
    "noise": lambda row: _ratio(row["noise_to_signal"]),
}
_ALIKE: dict[str, Column] = {
    "KL, common states": lambda row: _show(row["kl_common"]),
    "all of them": lambda row: _show(row["kl_common_all"], ".4f"),
    "KL, explicit's states": lambda row: _show(row["kl_on_own"]),
    "KL, variant's states": lambda row: _show(row["kl_on_others"]),
    "agreement": lambda row: _show(row["agreement"], ".2f"),
    "greedy": lambda row: _show(row["agreement_greedy"], ".2f"),
}
_GRADIENTS: dict[str, Column] = {
    "cosine to explicit": lambda row: _show(row["cosine"]),
    "signal": lambda row: f"{row['signal']:.2e}",
    "noise": lambda row: f"{row['noise']:.2e}",
    "noise / signal": lambda row: _ratio(row["noise_to_signal"]),
}


def _equal_rate_column(rate: str) -> Column:
    return lambda row: f"{row[rate]['kl_on_own']:.3f}, {row[rate]['agreement']:.2f}"


def _logit_column(eta: str) -> Column:
    return lambda row: f"{row[eta]['gate_logit']:.1e}, {row[eta]['gate_kl']:.1e}"


def _table(rows: Mapping[str, Mapping[Any, Any]], columns: Mapping[str, Column]) -> str:
    lines = ["| variant | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(show(row) for show in columns.values()) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def _show(value: Interval, form: str = ".3f", *, star: bool = False) -> str:
    width = "" if value.half_width is None else f" ± {value.half_width:{form.lstrip('+')}}"
    return f"{value.mean:{form}}{width}{'*' if star and value.leaves_out_zero else ''}"


def _ratio(value: float | None) -> str:
    return "no signal" if value is None else f"{value:.1f}"

"""The command `cellar-trainer`."""

import asyncio
import json
import logging
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Everything that needs torch is imported by the command that needs it, so that --help answers at once.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a model to use tools when it pays: rollouts with deferred cells, and IH-GRPO.",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The run's configuration.")]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, as in optimiser.learning_rate=1e-5."),
]


@app.command()
def train(
    config_path: ConfigPath,
    changes: Changes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and needed; start nothing.")
    ] = False,
) -> None:
    """Train. Needs an executor, and a vLLM server unless policy.kind is "local"."""
    from cellar_trainer.config import load_config
    from cellar_trainer.plan import plan

    with _one_line_errors():
        config = load_config(config_path, changes or [])
        if dry_run:
            _show(plan(config))
        else:
            _run_in_ranks(config, resume)


@app.command()
def rollout(
    config_path: ConfigPath,
    changes: Changes = None,
    *,
    tasks: Annotated[str, typer.Option(help="Problems, as tasks.path takes them.")],
    out: Annotated[Path, typer.Option(help="File for the trajectories, one JSON object per line.")],
    n: Annotated[int, typer.Option("--n", help="Trajectories per problem.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="Only so many problems.", min=1)] = None,
) -> None:
    """Play problems with the policy as it is, and keep the trajectories."""
    from cellar_trainer.config import load_config

    with _one_line_errors():
        config = load_config(config_path, changes or [])
        Console().print_json(json.dumps(_run(_play(config, tasks, limit, n, out))))


@app.command("eval")
def evaluate(
    config_path: ConfigPath,
    changes: Changes = None,
    *,
    suite: Annotated[
        str | None,
        typer.Option(help="A suite (math6, or a .toml file), or problems as tasks.path takes them; eval.suite."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the suite's files; eval.data.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Trajectories per problem; eval.n.", min=1)] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many problems of each set; eval.limit.", min=1)] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.md, report.json and trajectories.jsonl.")],
) -> None:
    """Measure the policy as it is: avg@n, pass@k with intervals, executions, deferral.

    The same command again goes on where it stopped, and tries what was dropped once more.
    """
    from cellar_trainer.config import ConfigError, load_config

    options = {"eval.suite": suite, "eval.data": data, "eval.n": n, "eval.limit": limit}
    given = {key: value for key, value in options.items() if value is not None}
    with _one_line_errors():
        config = load_config(config_path, changes or [], given)
        if config.eval.suite is None:
            raise ConfigError("eval.suite: name a suite or a task file here, or with --suite")
        _run(_evaluate(config, out))


@app.command()
def options(
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/configuration.md has it.")] = False,
) -> None:
    """List every key of the configuration: its type, its default, what it does."""
    from cellar_trainer import reference

    if markdown:
        print(reference.markdown(), end="")  # noqa: T201  # not the console's: it would wrap the tables
        return
    for option in reference.options():
        default = f" = {option.default}" if option.default else ""
        Console(highlight=False).print(f"[bold]{option.key}[/]{escape(default)}  [dim]{escape(option.kind)}[/]")
        Console(highlight=False).print(f"    {escape(option.doc)}", soft_wrap=False)


study = typer.Typer(no_args_is_help=True, help="Experiments that can be repeated with one command.")
app.add_typer(study, name="study")


@study.command()
def equivalence(
    out: Annotated[Path, typer.Option(help="Folder for results, report and plots; what it holds already is kept.")],
    seeds: Annotated[int, typer.Option(help="Fresh seeds, beside those that choose the learning rates.", min=1)] = 6,
    processes: Annotated[
        int | None, typer.Option(help="Runs at a time; as many as there are cores when left out.", min=1)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="All of it in small, which shows nothing but works.")] = False,
) -> None:
    """Does the implicit policy behave like the explicit one? On a small model; needs no service.

    The same command again goes on where it stopped, also with more seeds.
    """
    from cellar_trainer.study.equivalence import study_equivalence
    from cellar_trainer.study.jobs import QUICK, Settings
    from cellar_trainer.telemetry.progress import Progress

    settings = QUICK if quick else Settings()
    with _one_line_errors():
        try:
            study_equivalence(
                out, settings, seeds=seeds, processes=processes or os.cpu_count() or 1, progress=Progress()
            )
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        Console(highlight=False).print(str(out / "report.md"), markup=False, soft_wrap=True)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    app()


def _run_in_ranks(config: Any, resume: bool) -> None:
    """All that trains in this process: the run, or, in all but the first of several processes, what lends it a hand."""
    from cellar_trainer.learning.distributed import process_group
    from cellar_trainer.learning.sharding import rank
    from cellar_trainer.wiring import serve_training

    with process_group(config.model.device):
        if rank() == 0:
            _run(_train(config, resume))
        else:
            serve_training(config)


async def _train(config: Any, resume: bool) -> None:
    from cellar_trainer.telemetry.progress import Progress
    from cellar_trainer.train import train as run_training
    from cellar_trainer.wiring import open_training

    async with open_training(config, resume=resume, progress=Progress()) as training:
        await run_training(training, config.train)


async def _play(config: Any, tasks: str, limit: int | None, n: int, out: Path) -> dict[str, float]:
    from cellar_trainer.data.tasks import load_tasks
    from cellar_trainer.rollouts.rollout import derive_seed
    from cellar_trainer.telemetry.metrics import rollout_metrics, trajectory_record, write_line
    from cellar_trainer.telemetry.progress import Progress
    from cellar_trainer.wiring import open_rollouts

    problems = load_tasks(tasks, limit=limit)
    jobs = [(task, derive_seed(config.eval.seed, "rollout", task.task_id, i)) for task in problems for i in range(n)]
    async with open_rollouts(config) as rollouts:
        with Progress().counting("rollouts") as count:
            played = [t for t in await rollouts.play(jobs, on_done=count) if t is not None]
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", encoding="utf-8") as file:
            for trajectory in played:
                write_line(file, trajectory_record(trajectory, rollouts.renderer))
    return {**rollout_metrics(played), "dropped": float(len(jobs) - len(played))}


async def _evaluate(config: Any, out: Path) -> None:
    from cellar_trainer.evaluation.journal import Journal, OtherEvaluation, settings
    from cellar_trainer.evaluation.markdown import SET_COLUMNS, markdown, set_rows
    from cellar_trainer.evaluation.play import evaluate as play
    from cellar_trainer.evaluation.report import report as make_report
    from cellar_trainer.evaluation.suites import load_suite
    from cellar_trainer.telemetry.progress import Progress
    from cellar_trainer.wiring import open_rollouts, weight_label

    progress = Progress()
    suite = load_suite(config.eval)
    weights = await weight_label(config)
    asked = settings(config, suite, weights)
    with Journal(out, asked) as journal:
        if journal.samples:
            progress.say(f"{len(journal.samples)} trajectories are in {out} already")
        async with open_rollouts(config) as rollouts:
            with progress.counting(f"evaluating on {suite.name}") as count:
                samples = await play(
                    suite.sets,
                    rollouts,
                    seed=config.eval.seed,
                    done=journal.samples,
                    keep=lambda sample, trajectory: journal.add(sample, trajectory, rollouts.renderer),
                    on_done=count,
                )
    if (now := await weight_label(config)) != weights:
        raise OtherEvaluation(f"{out}: the policy's weights became {now} in the middle, and were {weights}")
    report = make_report(suite, samples, seed=config.eval.seed)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (out / "report.md").write_text(markdown(report, asked), encoding="utf-8")
    table = Table(*SET_COLUMNS, box=None)
    for row in set_rows(report):
        table.add_row(*row)
    Console().print(table)
    if dropped := sum(entry["dropped"] for entry in report["sets"].values()):
        progress.say(f"{dropped} rollouts were dropped, as a service failed: the same command tries them again")


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _show(rows: list[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None)
    for what, how_much in rows:
        table.add_row(what, how_much)
    Console().print(table)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the user or a service can mend is said in words; a traceback is for our own mistakes."""
    from cellar_client.errors import CellarError
    from cellar_trainer.config import ConfigError
    from cellar_trainer.data.tasks import TaskFileError
    from cellar_trainer.evaluation.journal import OtherEvaluation
    from cellar_trainer.evaluation.suites import SuiteError
    from cellar_trainer.learning.model import ModelUnusable
    from cellar_trainer.policy.protocol import PolicyUnavailable
    from cellar_trainer.rewards.grader import GraderUnavailable
    from cellar_trainer.rollouts.rollout import RolloutFailed
    from cellar_trainer.telemetry.loggers import LoggerUnavailable
    from cellar_trainer.weights import PublishFailed

    try:
        yield
    except (ConfigError, LoggerUnavailable) as error:
        _fail(str(error), 2)
    except (
        CellarError,
        GraderUnavailable,
        ModelUnusable,
        OtherEvaluation,
        PolicyUnavailable,
        PublishFailed,
        RolloutFailed,
        SuiteError,
        TaskFileError,
        OSError,
    ) as error:
        _fail(str(error), 1)


def _fail(message: str, status: int) -> None:
    Console(stderr=True, highlight=False).print(f"cellar-trainer: {message}", markup=False, soft_wrap=True)
    raise typer.Exit(status)

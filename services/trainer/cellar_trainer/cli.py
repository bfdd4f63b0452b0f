"""The command `cellar-trainer`."""

import asyncio
import json
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
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
            _run(_train(config, resume))


@app.command()
def rollout(
    config_path: ConfigPath,
    changes: Changes = None,
    *,
    tasks: Annotated[Path, typer.Option(help="Problems, .parquet or .jsonl.")],
    out: Annotated[Path, typer.Option(help="File for the trajectories, one JSON object per line.")],
    samples: Annotated[int, typer.Option(help="Trajectories per problem.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="Only so many problems.", min=1)] = None,
) -> None:
    """Play problems with the policy as it is, and keep the trajectories."""
    from cellar_trainer.config import load_config

    with _one_line_errors():
        config = load_config(config_path, changes or [])
        report = _run(_play(config, tasks, limit, samples, out))
        Console().print_json(json.dumps(report["overall"]))


@app.command("eval")
def evaluate(
    config_path: ConfigPath,
    changes: Changes = None,
    *,
    tasks: Annotated[Path | None, typer.Option(help="Problems; eval.path when left out.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for eval.json and trajectories.jsonl.")] = Path("eval"),
    samples: Annotated[int | None, typer.Option(help="Trajectories per problem; eval.samples.", min=1)] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many problems; eval.limit.", min=1)] = None,
) -> None:
    """Measure the policy as it is: avg@n, pass@k, stop reasons, deferral. Nothing is left out uncounted."""
    from cellar_trainer.config import ConfigError, load_config

    with _one_line_errors():
        config = load_config(config_path, changes or [])
        path = tasks or config.eval.path
        if path is None:
            raise ConfigError("eval.path: name the problems here, or with --tasks")
        count = samples or config.eval.samples
        report = _run(_play(config, path, limit or config.eval.limit, count, out / "trajectories.jsonl"))
        (out / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
        Console().print_json(json.dumps(report["overall"]))


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    app()


async def _train(config: Any, resume: bool) -> None:
    from cellar_trainer.progress import Progress
    from cellar_trainer.train import train as run_training
    from cellar_trainer.wiring import open_training

    async with open_training(config, resume=resume, progress=Progress()) as training:
        await run_training(training, config.train, config.collect)


async def _play(config: Any, tasks: Path, limit: int | None, samples: int, out: Path) -> dict[str, Any]:
    from cellar_trainer.evaluate import evaluate as play
    from cellar_trainer.metrics import trajectory_record, write_line
    from cellar_trainer.progress import Progress
    from cellar_trainer.tasks import load_tasks
    from cellar_trainer.wiring import open_rollouts

    progress = Progress()
    problems = load_tasks(tasks, limit=limit)
    async with open_rollouts(config) as rollouts:
        with progress.counting("rollouts") as count:
            played = await play(problems, rollouts, samples=samples, seed=config.eval.seed, on_done=count)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", encoding="utf-8") as file:
            for trajectory in played.trajectories:
                write_line(file, trajectory_record(trajectory, rollouts.renderer))
    return played.report


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
    from cellar_trainer.model import ModelUnusable
    from cellar_trainer.policy.protocol import PolicyUnavailable
    from cellar_trainer.rollout import RolloutFailed
    from cellar_trainer.tasks import TaskFileError
    from cellar_trainer.weights import PublishFailed

    try:
        yield
    except ConfigError as error:
        _fail(str(error), 2)
    except (
        CellarError,
        ModelUnusable,
        PolicyUnavailable,
        PublishFailed,
        RolloutFailed,
        TaskFileError,
        OSError,
    ) as error:
        _fail(str(error), 1)


def _fail(message: str, status: int) -> None:
    Console(stderr=True, highlight=False).print(f"cellar-trainer: {message}", markup=False, soft_wrap=True)
    raise typer.Exit(status)

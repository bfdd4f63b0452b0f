"""`make demo`: a tiny model learns to defer its cells, with the real executor, real vLLM and IH-GRPO, on two cores.

    tasks -> tiny model, warm-started -> executor and vLLM up -> evaluate -> train -> evaluate -> plot

Everything it makes is left in the output folder. Where the services run already, as they do in containers, it starts
with what `demo.prepare` made.
"""

import argparse
import asyncio
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is made here; transformers is not to look for it elsewhere

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from cellar_trainer.checkpoint import latest
from cellar_trainer.config import Config, load_config
from cellar_trainer.evaluation.options import EvalOptions
from cellar_trainer.evaluation.play import Sample, evaluate
from cellar_trainer.evaluation.report import report as make_report
from cellar_trainer.evaluation.suites import load_suite
from cellar_trainer.serving import DEFAULT_PYTHON, ServerFailed, VLLMServer
from cellar_trainer.telemetry.metrics import trajectory_record, write_line
from cellar_trainer.telemetry.progress import Progress
from cellar_trainer.train import Training, train
from cellar_trainer.types import Trajectory
from cellar_trainer.wiring import open_training
from demo.executor import executor
from demo.options import parse_arguments
from demo.plot import plot_runs
from demo.prepare import prepare

CONFIG = Path(__file__).with_name("config.toml")
HELD_OUT_SAMPLES = 2

console = Console(soft_wrap=True)


def main() -> None:
    options = parse_arguments(__doc__)
    started_s = time.monotonic()
    out: Path = options.out
    prepared: Path = options.prepared or out
    torch.set_num_threads(1)  # two gain a tiny model nothing, and threads that wait for each other's core lose tenfold
    transformers_logging.disable_progress_bar()
    _set_aside(out)
    if options.prepared is None:
        prepare(out, options.seed, console)
    with _services(options) as service_changes:
        changes = [
            *(f"output={out}", f"model.path={prepared / 'model'}", f"tasks.path={prepared / 'train.jsonl'}"),
            *(*service_changes, f"train.seed={options.seed}", *options.changes),
        ]
        report = asyncio.run(_learn(load_config(CONFIG, changes), prepared / "held_out.jsonl", options.data))
    (out / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
    plot_runs([out], out / "reward.png")
    _summarise(report, out, time.monotonic() - started_s)


def _set_aside(out: Path) -> None:
    """An earlier demo's results are moved, not lost."""
    if out.exists():
        earlier = out.with_name(f"{out.name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(out.stat().st_mtime))}")
        shutil.move(out, earlier)
        console.print(f"the earlier run is now in {earlier}")
    out.mkdir(parents=True)


@contextmanager
def _services(options: argparse.Namespace) -> Iterator[list[str]]:
    """Addresses and kind of the services: of those that run already, or of our own, for as long as this lasts."""
    if options.executor_url is not None:
        yield [f"executor.url={options.executor_url}", f"policy.url={options.vllm_url}"]
        return
    out: Path = options.out
    with executor(out / "executor", out / "executor.log") as executor_url, _policy(out) as policy_changes:
        yield [f"executor.url={executor_url}", *policy_changes]


@contextmanager
def _policy(out: Path) -> Iterator[list[str]]:
    """The configuration's part about the policy: real vLLM or, where that cannot be had, the model in-process."""
    with ExitStack() as resources:
        try:
            server = resources.enter_context(_vllm(out))
        except ServerFailed as error:
            console.print(f"[yellow]No vLLM: the model is sampled in the trainer's own process instead.[/] {error}")
            yield ["policy.kind=local"]
        else:
            yield ["policy.kind=vllm", f"policy.url={server.url}", f"policy.model={server.model}"]


def _vllm(out: Path) -> VLLMServer:
    if not DEFAULT_PYTHON.exists():
        raise ServerFailed("it is not installed here")
    return VLLMServer(out / "model", log=out / "vllm.log", threads=1)


async def _learn(config: Config, held_out: Path, data: Path | None) -> dict[str, Any]:
    """Train, with the held-out problems before and after; real problems, if there are any, after."""
    out, seed = config.output, config.train.seed
    async with open_training(config, resume=False, progress=Progress()) as run:
        await run.publish()
        before = await _evaluate(run, out, held_out, HELD_OUT_SAMPLES, seed)
        await train(run, config.train)
        newest = latest(out / "checkpoints")
        assert newest is not None, "train() ends with a checkpoint"
        newest.rename(out / "checkpoint")
        newest.parent.rmdir()
        after = await _evaluate(run, out, held_out, HELD_OUT_SAMPLES, seed)
        report: dict[str, Any] = {"held_out_before": before, "held_out": after}
        if data is not None:
            report["real"] = await _evaluate(run, out, data, 1, seed)
    return report


async def _evaluate(run: Training, out: Path, tasks: Path, n: int, seed: int) -> dict[str, Any]:
    """The report on one file's problems; the trajectories are added to eval_trajectories.jsonl."""
    rollouts = run.supply.rollouts
    suite = load_suite(EvalOptions(suite=str(tasks), n=n))
    with (
        run.progress.counting(f"evaluating on {tasks.name}") as count,
        (out / "eval_trajectories.jsonl").open("a", encoding="utf-8") as file,
    ):

        def keep(_: Sample, trajectory: Trajectory) -> None:
            write_line(file, trajectory_record(trajectory, rollouts.renderer))

        samples = await evaluate(suite.sets, rollouts, seed=seed, keep=keep, on_done=count)
    entry: dict[str, Any] = make_report(suite, samples, seed=seed)["sets"][tasks.stem]
    return entry


def _summarise(report: dict[str, Any], out: Path, duration_s: float) -> None:
    before, after = report["held_out_before"], report["held_out"]
    console.print(
        f"held-out problems: solved {_average(before):.2f} -> {_average(after):.2f}, deferral rate "
        f"{before['deferral']:.2f} -> {after['deferral']:.2f}, runs per trajectory "
        f"{before['executions']:.2f} -> {after['executions']:.2f}"
    )
    if "real" in report:
        real = report["real"]
        console.print(f"real problems: {real['problems']} graded or counted, accuracy {_average(real)}")
    console.print(f"{duration_s / 60:.1f} minutes; see {out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


def _average(entry: dict[str, Any]) -> Any:
    return entry["estimates"][f"avg@{entry['n']}"]["value"]


if __name__ == "__main__":
    main()

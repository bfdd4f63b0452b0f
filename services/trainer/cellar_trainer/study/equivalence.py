"""The study from end to end: what is done in which order, by how many processes, and what is done already.

results.jsonl has a line for the settings and a line for each finished piece. Whoever goes on with it does only what is
not there.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch

from cellar_trainer.config import ConfigError
from cellar_trainer.study.jobs import Job, Record, Settings
from cellar_trainer.study.report import write_report
from cellar_trainer.study.variants import AGAIN, EXPLICIT, IMPLICIT, VARIANTS
from cellar_trainer.telemetry.progress import Progress


def study_equivalence(out: Path, settings: Settings, *, seeds: int, processes: int, progress: Progress) -> None:
    """Do what is missing, then write report.md, report.json and the plots.

    Raises:
        ConfigError: `out` holds a study with other settings.
    """
    results = Results(out, settings)
    tuning = range(settings.tuning_seeds)
    fresh = range(settings.tuning_seeds, settings.tuning_seeds + seeds)
    with _workers(processes) as run_all:
        complete = partial(_complete, results, run_all, progress)
        complete("logits and warm starts", [Job("logits"), *(Job("start", seed) for seed in (*tuning, *fresh))])
        grid = [(variant, rate) for rate in settings.learning_rates for variant in VARIANTS]
        complete("learning rates", [Job("tuning", seed, *point) for seed in tuning for point in grid])
        rates = best_rates(results.of("tuning"))
        progress.say("best learning rates: " + ", ".join(f"{variant} {rate:g}" for variant, rate in rates.items()))
        rates[AGAIN] = rates[EXPLICIT]
        complete("runs", [Job("run", seed, variant, rate) for seed in fresh for variant, rate in rates.items()])
        at_best = [Job("comparison", seed, variant) for seed in fresh for variant in (AGAIN, *IMPLICIT)]
        alike = [Job("comparison", seed, *point) for seed in tuning for point in grid if point[0] in IMPLICIT]
        complete("comparisons", [*at_best, *alike, *(Job("gradients", seed) for seed in fresh)])
    write_report(out, settings, results.records, rates, fresh)


def best_rates(tuning: Sequence[Record]) -> dict[str, float]:
    """Of each variant, the rate whose reward, averaged over all steps and tuning seeds, is highest."""
    rewards: dict[str, dict[float, list[float]]] = {}
    for record in tuning:
        by_rate = rewards.setdefault(record["variant"], {}).setdefault(record["learning_rate"], [])
        by_rate.append(fmean(record["curves"]["reward_mean"]))
    return {variant: max(by_rate, key=lambda rate: fmean(by_rate[rate])) for variant, by_rate in rewards.items()}


class Results:
    """results.jsonl and the files beside it."""

    def __init__(self, out: Path, settings: Settings) -> None:
        self.settings = settings
        self.files = out / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self._path = out / "results.jsonl"
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a kill may have cut the last one short
        wanted = json.loads(json.dumps(asdict(settings)))
        if not whole:
            whole = [json.dumps({"settings": wanted}) + "\n"]
        head, *self.records = (json.loads(line) for line in whole)
        if head["settings"] != wanted:
            raise ConfigError(f"{self._path} holds a study with other settings: choose another folder")
        if whole != lines:
            self._path.write_text("".join(whole), encoding="utf-8")

    def of(self, stage: str) -> list[Record]:
        return [record for record in self.records if record["stage"] == stage]

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        done = {record["key"] for record in self.records}
        return [job for job in jobs if job.key not in done]

    def add(self, record: Record) -> None:
        self.records.append(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


Task = Callable[[], Record]
RunAll = Callable[[Sequence[Task]], Iterator[Record]]


def _complete(results: Results, run_all: RunAll, progress: Progress, title: str, jobs: Sequence[Job]) -> None:
    tasks = [partial(_timed, job, results.settings, results.files) for job in results.missing(jobs)]
    done = len(jobs) - len(tasks)
    progress.say(f"{title}: {done} of {len(jobs)} are there")
    with progress.counting(title) as count:
        for record in run_all(tasks):
            results.add(record)
            done += 1
            count(done, len(jobs))


def _timed(job: Job, settings: Settings, files: Path) -> Record:
    started = time.monotonic()
    return job.perform(settings, files) | {"seconds": round(time.monotonic() - started, 1)}


@contextmanager
def _workers(processes: int) -> Iterator[RunAll]:
    """Tiny models gain nothing from threads: each process has one, also this one where it does the work itself."""
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda tasks: (task() for task in tasks)
        finally:
            torch.set_num_threads(threads)
        return
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_prepare_worker)
    try:
        yield lambda tasks: (future.result() for future in as_completed([pool.submit(task) for task in tasks]))
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    torch.set_num_threads(1)

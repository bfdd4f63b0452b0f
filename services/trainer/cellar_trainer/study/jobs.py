"""The pieces of the study, each a function of the settings and of files that earlier pieces left."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from cellar_trainer.study import logits
from cellar_trainer.study.measures import choices, compare, cosine, gate_kl, gate_logits, mean_kl_curve
from cellar_trainer.study.network import Network
from cellar_trainer.study.sampler import Rollouts
from cellar_trainer.study.training import Gradient, draw_batch, half_gradients, signal_and_noise, train
from cellar_trainer.study.variants import EXPLICIT, VARIANTS, is_explicit, options_of
from cellar_trainer.study.warm_start import State, network_of, own_rollouts, warm_start

Record = dict[str, Any]
Stage = Literal["logits", "start", "tuning", "run", "comparison", "gradients"]
_FIXED, _HELD_OUT, _GRADIENTS = 1_000_000, 2_000_000, 3_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """What makes two studies comparable. How many fresh seeds there are is not part of it: more may be added."""

    warm_start_steps: int = 900
    demonstrations: int = 64
    """Of a step of the warm start."""
    steps: int = 80
    problems: int = 16
    """Of a step, with 8 trajectories each."""
    learning_rates: tuple[float, ...] = (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3)
    tuning_seeds: int = 2
    mark_every: int = 5
    compared_problems: int = 256
    gradient_batches: int = 8
    logit_steps: int = 100


QUICK = Settings(
    warm_start_steps=80,
    demonstrations=16,
    steps=2,
    problems=2,
    learning_rates=(8e-4,),
    tuning_seeds=1,
    mark_every=1,
    compared_problems=8,
    gradient_batches=2,
    logit_steps=5,
)


@dataclass(frozen=True, slots=True)
class Job:
    stage: Stage
    seed: int = 0
    variant: str = ""
    learning_rate: float = 0.0

    @property
    def key(self) -> str:
        """Names it in results.jsonl and in the file system."""
        parts = [self.stage, str(self.seed)]
        parts += [self.variant.replace(", ", "-").replace(" ", "-")] if self.variant else []
        parts += [f"{self.learning_rate:g}"] if self.learning_rate else []
        return "_".join(parts)

    def perform(self, settings: Settings, folder: Path) -> Record:
        """Needs the files of the stages before it, and leaves its own in the folder."""
        result = _PERFORM[self.stage](self, settings, folder)
        return {"key": self.key, **asdict(self), **result}


def _logits(job: Job, settings: Settings, folder: Path) -> Record:
    return {
        "drift": [
            {"surrogate": name, "eta": eta, "vocabulary": vocabulary}
            | logits.drift(name, eta, vocabulary, steps=settings.logit_steps, seed=job.seed)
            for name in logits.SURROGATES
            for eta in logits.ETAS
            for vocabulary in logits.VOCABULARIES
        ]
    }


def _start(job: Job, settings: Settings, folder: Path) -> Record:
    learned = warm_start(job.seed, steps=settings.warm_start_steps, demonstrations=settings.demonstrations)
    torch.save(learned.state, folder / f"{job.key}.pt")
    implicit, explicit = (network_of(learned.state, explicit=kind) for kind in (False, True))
    fixed = _fixed_states(learned.state, job.seed, settings)
    kl_S = gate_kl(gate_logits(implicit, fixed), gate_logits(explicit, fixed))
    return {
        "loss": learned.loss,
        "ceiling": learned.ceiling,
        "gate_kl": float(kl_S.mean()),
        **compare(explicit, implicit, count=settings.compared_problems, seed=job.seed + _HELD_OUT),
        **fixed.metrics(),
    }


def _run(job: Job, settings: Settings, folder: Path) -> Record:
    start = _load_start(job.seed, folder)
    run = train(
        start,
        job.variant,
        job.learning_rate,
        seed=job.seed,
        steps=settings.steps,
        problems=settings.problems,
        fixed=_fixed_states(start, job.seed, settings),
        mark_every=settings.mark_every,
    )
    torch.save({"gates": run.gates_MS, "state": run.network.state_dict()}, folder / f"{job.key}.pt")
    return {"curves": {name: [round(step[name], 6) for step in run.steps] for name in run.steps[0]}}


def _comparison(job: Job, settings: Settings, folder: Path) -> Record:
    """The job's variant beside the explicit policy of its seed: at this learning rate, or each at its best."""
    start = _load_start(job.seed, folder)
    where_S = choices(_fixed_states(start, job.seed, settings))
    (gates_MS, network), (other_MS, other) = (_load_run(job, variant, folder) for variant in (EXPLICIT, job.variant))
    curves = {
        "kl_curve": mean_kl_curve(gates_MS, other_MS, where_S),
        "kl_curve_all": mean_kl_curve(gates_MS, other_MS, torch.ones_like(where_S)),
    }
    return curves | compare(network, other, count=settings.compared_problems, seed=job.seed + _HELD_OUT)


def _gradients(job: Job, settings: Settings, folder: Path) -> Record:
    """Of every variant at the common start, on the same trajectories: signal, noise, and the angle to the explicit one.

    The angle is between gradients of the parameters that both policies share and use alike: all below the heads.
    """
    start = _load_start(job.seed, folder)
    sampler, rng = network_of(start, explicit=False), torch.Generator().manual_seed(job.seed + _GRADIENTS)
    batches = [draw_batch(sampler, settings.problems, rng, rng) for _ in range(settings.gradient_batches)]
    trunks, rows = {}, {}
    for variant in VARIANTS:
        network = network_of(start, explicit=is_explicit(variant))
        halves = [half_gradients(network, batch, options_of(variant))[0] for batch in batches]
        sizes = [signal_and_noise(*pair) for pair in halves]
        rows[variant] = {name: sum(size[name] for size in sizes) / len(sizes) for name in sizes[0]}
        trunks[variant] = _trunk(network, [half for pair in halves for half in pair])
    return {"rows": {name: row | {"cosine": cosine(trunks[EXPLICIT], trunks[name])} for name, row in rows.items()}}


def _trunk(network: Network, gradients: list[Gradient]) -> Gradient:
    """The mean gradient of what lies below the heads."""
    names = [name for name, _ in network.named_parameters()]
    means = [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]
    return [mean for name, mean in zip(names, means, strict=True) if not name.startswith(("head", "gate"))]


def _fixed_states(start: State, seed: int, settings: Settings) -> Rollouts:
    """The same for all variants of a seed: trajectories of their common start."""
    rng = torch.Generator().manual_seed(seed + _FIXED)
    return own_rollouts(network_of(start, explicit=False), settings.compared_problems, rng)


def _load_start(seed: int, folder: Path) -> State:
    return cast(State, torch.load(folder / f"{Job('start', seed).key}.pt"))


def _load_run(job: Job, variant: str, folder: Path) -> tuple[torch.Tensor, Network]:
    """The variant's run of the job's seed, at the job's learning rate or, if it has none, at the best."""
    run = Job("tuning" if job.learning_rate else "run", job.seed, variant, job.learning_rate)
    (path,) = folder.glob(f"{run.key}.pt" if job.learning_rate else f"{run.key}_*.pt")
    saved = torch.load(path)
    return saved["gates"], network_of(saved["state"], explicit=is_explicit(variant))


_PERFORM = {
    "logits": _logits,
    "start": _start,
    "tuning": _run,
    "run": _run,
    "comparison": _comparison,
    "gradients": _gradients,
}

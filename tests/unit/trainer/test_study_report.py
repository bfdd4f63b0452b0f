"""Numbers over seeds, which learning rate is best, and what a report is about."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cellar_trainer.study.equivalence import best_rates
from cellar_trainer.study.jobs import QUICK, Job, Record
from cellar_trainer.study.logits import ETAS, SURROGATES
from cellar_trainer.study.report import write_report
from cellar_trainer.study.statistics import first_reached, interval, paired
from cellar_trainer.study.summary import asked_for, summarise
from cellar_trainer.study.variants import AGAIN, IMPLICIT, VARIANTS

SETTINGS = replace(QUICK, learning_rates=(1e-4, 2e-4, 4e-4))
RATES = {variant: 2e-4 for variant in (*VARIANTS, AGAIN)} | {"plain": 4e-4, "exact": 1e-4}
FRESH = range(1, 3)
"""QUICK has one seed for tuning, 0."""


def test_intervals_by_hand() -> None:
    mean, half_width = interval([1.0, 2.0, 3.0])

    assert mean == 2.0
    assert half_width == pytest.approx(4.303 / 3**0.5)
    assert interval([5.0]) == (5.0, None)
    assert not interval([5.0]).leaves_out_zero


def test_pairs_take_out_what_seeds_share() -> None:
    difference = paired([1.1, 5.1, 9.1], [1.0, 5.0, 9.0])

    assert difference.mean == pytest.approx(0.1)
    assert difference.leaves_out_zero
    assert not interval([1.1, -5.1, 9.1]).leaves_out_zero


def test_a_goal_is_reached_by_the_mean_of_a_window() -> None:
    assert first_reached([0.0, 1.0, 1.0, 0.6, 1.0, 1.0], 0.8, window=3) == 4
    assert first_reached([1.0, 0.0] * 5, 0.8, window=2) is None


def test_the_best_rate_is_the_best_over_all_tuning_seeds() -> None:
    def run(rate: float, seed: int, reward: float) -> dict[str, object]:
        return {"variant": "plain", "learning_rate": rate, "seed": seed, "curves": {"reward_mean": [reward, reward]}}

    runs = [run(1e-3, 0, 0.9), run(1e-3, 1, 0.1), run(1e-4, 0, 0.6), run(1e-4, 1, 0.6)]

    assert best_rates(runs) == {"plain": 1e-4}


def test_keys_are_file_names_of_their_own() -> None:
    jobs = [Job("start", 1), Job("run", 1, "exact", 8e-4), Job("run", 1, "exact, fence", 8e-4), Job("comparison", 1)]

    assert [job.key for job in jobs] == ["start_1", "run_1_exact_0.0008", "run_1_exact-fence_0.0008", "comparison_1"]


@pytest.fixture
def study() -> list[Record]:
    """A whole one of two fresh seeds; with seed s each run's reward is s, and the released one's 0.25 more."""
    tuning = [_record(Job("tuning", 0, variant, rate)) for variant in VARIANTS for rate in SETTINGS.learning_rates]
    alike = [_record(Job("comparison", 0, name, rate)) for name in IMPLICIT for rate in SETTINGS.learning_rates]
    return [_record(Job("logits")), _record(Job("start")), *tuning, *alike, *_of_seed(1), *_of_seed(2)]


def test_a_report_is_about_the_seeds_asked_for_alone(study: list[Record], tmp_path: Path) -> None:
    left_over = [record for record in _of_seed(3) if record["variant"] != "plain"]  # of a larger study, not whole

    write_report(tmp_path, SETTINGS, [*left_over, *study], RATES, FRESH)

    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report == json.loads(json.dumps(summarise(SETTINGS, study, RATES)))
    assert report["seeds"] == [1, 2]
    assert report["starts"]["reward_mean"][0] == 1.5  # not that of the tuning seed


def test_nothing_of_another_seed_is_asked_for(study: list[Record]) -> None:
    stages = {record["stage"] for record in study}

    assert asked_for(SETTINGS, [*_of_seed(3), *study], FRESH) == study
    assert {record["stage"] for record in _of_seed(3)} == stages - {"logits", "tuning"}


def test_runs_are_paired_by_seed_in_whatever_order_they_ended(study: list[Record]) -> None:
    last_of_plain = [record for record in study if record["key"].startswith("run_1_plain")]
    shuffled = [record for record in study if record not in last_of_plain] + last_of_plain

    assert summarise(SETTINGS, shuffled, RATES)["learning"]["released"]["reward_to_plain"] == (0.25, 0.0)


def test_pairs_must_be_whole(study: list[Record]) -> None:
    without = [record for record in study if not record["key"].startswith("run_1_plain")]

    with pytest.raises(KeyError):
        summarise(SETTINGS, without, RATES)


def test_a_best_rate_at_the_edge_of_the_grid_is_marked(study: list[Record], tmp_path: Path) -> None:
    write_report(tmp_path, SETTINGS, study, RATES, FRESH)

    learning = (tmp_path / "report.md").read_text(encoding="utf-8").split("## Learning")[1]
    rates = {cells[1].strip(): cells[2].strip() for line in learning.splitlines() if len(cells := line.split("|")) > 10}
    assert (rates["plain"], rates["exact"], rates["released"]) == ("0.0004^", "0.0001^", "0.0002")


def _of_seed(seed: int) -> list[Record]:
    runs = [_record(Job("run", seed, variant, rate)) for variant, rate in RATES.items()]
    alike = [_record(Job("comparison", seed, variant)) for variant in (AGAIN, *IMPLICIT)]
    return [_record(Job("start", seed)), *runs, *alike, _record(Job("gradients", seed))]


def _record(job: Job) -> Record:
    """As the job would leave it, its numbers made up."""
    value = job.seed + 0.25 * (job.variant == "released")
    curves = ("reward_mean", "deferral_rate", "runs_per_trajectory", "hierarchical_coefficient", "grad_norm")
    alike = dict.fromkeys(("kl_on_own", "kl_on_others", "agreement", "agreement_greedy"), 0.5)
    size = {"signal": 1.0, "noise": 2.0, "cosine": 1.0}
    drift = {"vocabulary": 2, "gate_logit": 0.1, "gate_kl": 0.1, "conditional": 0.1}
    run = {"curves": {name: [value, value] for name in (*curves, "signal", "noise")}}
    results: dict[str, dict[str, Any]] = {
        "logits": {"drift": [{"surrogate": name, "eta": eta} | drift for name in SURROGATES for eta in ETAS]},
        "start": alike
        | dict.fromkeys(("reward_mean", "ceiling", "runs_per_trajectory", "deferral_rate", "gate_kl"), value),
        "tuning": run,
        "run": run,
        "comparison": alike | {"kl_curve": [0.1, 0.2], "kl_curve_all": [0.1, 0.2]},
        "gradients": {"rows": {variant: size for variant in VARIANTS}},
    }
    return {"key": job.key, **asdict(job), "seconds": 36.0} | results[job.stage]

"""Numbers over seeds, and which learning rate is best."""

import pytest

from cellar_trainer.study.equivalence import best_rates
from cellar_trainer.study.jobs import Job
from cellar_trainer.study.statistics import first_reached, interval, paired


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

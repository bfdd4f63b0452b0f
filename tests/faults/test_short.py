"""A short storm; `make test-faults` has the long one."""

from pathlib import Path

from tests.faults.storm import storm, table


def test_a_short_storm_breaks_nothing(tmp_path: Path) -> None:
    outcome = storm(tmp_path, kills=15, at_most_s=45, writers=8, seed=7)
    assert not outcome.violations, "\n".join([*map(str, outcome.violations), table(outcome)])
    assert outcome.kills >= 5, table(outcome)
    assert any(call.ok for call in outcome.history.calls)

"""The tests bite: with a guard removed, the checker finds the promise broken that the guard is for."""

import contextlib
from pathlib import Path

import pytest

from tests.faults import client
from tests.faults.checker import check
from tests.faults.cluster import Cluster
from tests.faults.history import History
from tests.faults.scenarios import SCENARIOS


@pytest.mark.parametrize(
    ("mutant", "scenario", "broken"),
    [
        ("no fencing", "owner_paused_past_its_lease", "I4"),
        ("no fencing", "owner_cut_off_from_redis", "I4"),
        ("no started mark", "owner_killed_while_a_cell_runs", "I1"),
        ("no idempotency", "same_key_everywhere", "I1"),
        ("no tombstones", "deleted_for_good", "I8"),
        ("no durability", "redis_killed_while_a_cell_runs", "I2 I3 I10"),
    ],
)
def test_a_missing_guard_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: str, scenario: str, broken: str
) -> None:
    monkeypatch.setattr(client, "DEFINITE_WITHIN_S", 20.0)  # a mutant may never give one
    history = History()
    durable = mutant != "no durability"
    env = {"MUTANT": mutant} if durable else {}
    with Cluster(tmp_path, env=env, durable=durable) as cluster, contextlib.suppress(client.NoDefiniteAnswer):
        SCENARIOS[scenario](cluster, history)
    assert {violation.promise for violation in check(history)} & {*broken.split()}

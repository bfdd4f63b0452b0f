"""One fault at a time, at a chosen moment."""

import pytest

from tests.faults.checker import check
from tests.faults.cluster import Cluster
from tests.faults.history import History
from tests.faults.scenarios import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_broken(cluster: Cluster, name: str) -> None:
    history = History()
    try:
        SCENARIOS[name](cluster, history)
    finally:
        cluster.heal()
    violations = check(history)
    assert not violations, "\n".join(map(str, violations))
    assert not history.surprises, "\n".join(history.surprises)

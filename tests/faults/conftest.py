"""Clusters for tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three replicas for all tests of a module, each of which leaves them up."""
    folder: Path = tmp_path_factory.mktemp("cluster")
    with Cluster(folder) as running:
        yield running

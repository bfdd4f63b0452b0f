import pytest

from tests.deploy.deployment import missing


@pytest.fixture(scope="session")
def engine() -> None:
    """For tests that need Docker."""
    if reason := missing():
        pytest.skip(f"needs Docker and compose: {reason}")

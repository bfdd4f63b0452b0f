"""What integration tests share: real servers on folders of their own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.executor_process import ExecutorProcess

StartExecutor = Callable[..., ExecutorProcess]


@pytest.fixture(scope="session")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorProcess]:
    """One executor for all tests that leave it as they found it."""
    with ExecutorProcess(tmp_path_factory.mktemp("executor")) as running:
        yield running


@pytest.fixture
def start_executor(tmp_path: Path) -> Iterator[StartExecutor]:
    """Starts executors that a test may kill, stop and start again; `start_executor(*flags, env={})`.

    Their zygotes load nothing beforehand, which would take seconds at each start.
    """
    with ExitStack() as stack:

        def start(*flags: str, env: Mapping[str, str] | None = None) -> ExecutorProcess:
            quick = {"CELLAR_EXECUTOR_PREIMPORT": "python=", **(env or {})}
            return stack.enter_context(ExecutorProcess(tmp_path / "data", *flags, env=quick))

        yield start

"""Servers for the clients: one open, one that asks for a key, and a port where there is none."""

import socket
from collections.abc import Iterator

import pytest

from tests.executor_process import ExecutorProcess

API_KEY = "a-key-that-opens-the-cellar"


@pytest.fixture
def executor_url(executor: ExecutorProcess) -> str:
    return executor.url


@pytest.fixture
def api_key() -> str:
    return API_KEY


@pytest.fixture(scope="session")
def guarded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    keys = {"CELLAR_EXECUTOR_API_KEYS": API_KEY}
    with ExecutorProcess(tmp_path_factory.mktemp("guarded"), env=keys) as executor:
        yield executor.url


@pytest.fixture
def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port

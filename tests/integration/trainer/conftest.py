"""Real servers for the trainer's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cellar_trainer.serving import VLLMServer
from tests.vllm_server import tiny_vllm


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Side by side (xdist) go files, and as one of them all tests that need vLLM, which is started once."""
    for item in items:
        group = "vllm" if "vllm_server" in item.fixturenames else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """Half a minute to a minute to start, so one for all; its weights are whatever the last test published."""
    with tiny_vllm(tmp_path_factory.mktemp("vllm")) as server:
        yield server


@pytest.fixture
def model_dir(vllm_server: VLLMServer) -> Path:
    return vllm_server.model_dir

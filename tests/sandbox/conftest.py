"""A supervisor with real jails of each tier, one after the other, and a sibling that no attack may reach."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import get_args

import pytest
import pytest_asyncio

from cellar_client.schemas import Limits, Tier
from cellar_executor.kernel import RuntimeConfig, SupervisorConfig
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.supervisor import ProcessSupervisor, open_supervisor
from cellar_executor.settings import find_binary, parse_runtimes
from tests.sandbox.host import Traces

# Found as the server finds them, in an image too.
PYTHON = parse_runtimes(os.environ.get("CELLAR_EXECUTOR_RUNTIME", "").split(), [])["python"].python
NSJAIL = find_binary("nsjail")
SECRET = "of the host"
LIMITS = Limits(cell_timeout_s=5, memory_mb=128, processes=16, disk_mb=16, output_bytes=64 << 10)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-isolation", action="store_true", help="show that the attacks work: most then fail")


@pytest.fixture(scope="session", params=get_args(Tier))
def tier(request: pytest.FixtureRequest) -> Tier:
    chosen: Tier = request.param
    return chosen


@pytest.fixture(scope="session")
def config(request: pytest.FixtureRequest, tier: Tier) -> SupervisorConfig:
    return SupervisorConfig(
        runtimes={"python": RuntimeConfig(PYTHON)},
        nsjail=NSJAIL,
        tier=tier,
        zygotes=1,
        ready_sessions=2,
        ready_limits=LIMITS,
        insecure_no_isolation=request.config.getoption("--without-isolation"),
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def supervisor(config: SupervisorConfig) -> AsyncIterator[ProcessSupervisor]:
    supervisor = await open_supervisor(config)
    yield supervisor
    await supervisor.close()


@pytest.fixture(scope="session")
def started(supervisor: ProcessSupervisor) -> list[JailedKernel]:
    """The session that was started after an attack, to see that one can be, is the next test's."""
    return []


@pytest_asyncio.fixture(loop_scope="session")
async def kernel(supervisor: ProcessSupervisor, started: list[JailedKernel]) -> AsyncIterator[JailedKernel]:
    kernel = started.pop() if started else await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    yield kernel
    await kernel.close()


@pytest.fixture
def traces(kernel: JailedKernel) -> Iterator[Traces]:
    with Traces.of(kernel) as traces:
        yield traces


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sibling(supervisor: ProcessSupervisor) -> AsyncIterator[JailedKernel]:
    kernel = await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    await kernel.run_cell("mine = 'intact'; open('mine', 'w').write(mine)", timeout_s=5)
    yield kernel
    await kernel.close()


@pytest.fixture(scope="session")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host") / "secret"
    path.write_text(SECRET)
    return path

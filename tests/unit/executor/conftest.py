"""A real Redis for the store and all above it, emptied between tests."""

from collections.abc import AsyncIterator, Iterator

import pytest

from cellar_client.schemas import Limits
from cellar_executor.records import Quotas, SessionConfig
from cellar_executor.redis_server import redis_server
from cellar_executor.service import Service
from cellar_executor.settings import find_binary
from cellar_executor.store import Store, open_store
from tests.unit.executor.fakes import InProcessSupervisor

LIMITS = Limits(cell_timeout_s=10, memory_mb=256, processes=16, disk_mb=16, output_bytes=4096)
QUOTAS = Quotas(max_sessions=3, max_pending_cells=4, max_log_bytes=10_000, answer_ttl_s=60)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = find_binary("redis-server")
    assert binary is not None
    with redis_server(binary, tmp_path_factory.mktemp("redis")) as redis:
        yield redis.url


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    async with open_store(redis_url, "instance-1", QUOTAS) as store:
        await store._redis.flushall()
        await store.take_over()
        yield store


@pytest.fixture
def config() -> SessionConfig:
    return SessionConfig(runtime="python", limits=LIMITS, recovery="fail", idle_ttl_s=60, seed=None, metadata={})


@pytest.fixture
def supervisor() -> InProcessSupervisor:
    return InProcessSupervisor()


@pytest.fixture
async def service(store: Store, supervisor: InProcessSupervisor) -> AsyncIterator[Service]:
    service = Service(
        store,
        supervisor,
        limits=LIMITS,
        runtimes=frozenset({"python"}),
        max_sessions=3,
        idle_ttl_s=60,
        replay_timeout_s=5,
    )
    yield service
    await service.close()

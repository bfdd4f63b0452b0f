"""A real Redis for the store and all above it, emptied between tests; and a kernel without a jail."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from cellar_client.schemas import Limits
from cellar_executor.http.app import create_app
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.records import Quotas, SessionConfig
from cellar_executor.redis_server import redis_server
from cellar_executor.service import Service
from cellar_executor.settings import find_binary
from cellar_executor.store import Store, open_store
from cellar_executor.tenancy.tenants import Quota, Tenants
from tests.unit.executor.fakes import InProcessSupervisor
from tests.unit.executor.local_kernel import start_kernel

LIMITS = Limits(cell_timeout_s=10, memory_mb=256, processes=16, disk_mb=16, output_bytes=4096)
QUOTAS = Quotas(max_pending_cells=4, max_log_bytes=10_000, answer_ttl_s=60)


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
        await store.register("http://one", None)
        yield store


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[JailedKernel]:
    kernel = await start_kernel(tmp_path)
    yield kernel
    await kernel.close_jail()


@pytest.fixture
def config() -> SessionConfig:
    return SessionConfig(runtime="python", limits=LIMITS, recovery="fail", idle_ttl_s=60, seed=None, metadata={})


@pytest.fixture
def supervisor() -> InProcessSupervisor:
    return InProcessSupervisor()


@pytest.fixture
async def service(store: Store, supervisor: InProcessSupervisor) -> AsyncIterator[Service]:
    service = make_service(store, supervisor)
    yield service
    await service.close()


@pytest.fixture
async def successor(redis_url: str, service: Service) -> AsyncIterator[Service]:
    """A server on the same Redis as `service`; `crash` kills that one."""
    async with open_store(redis_url, "instance-2", QUOTAS) as store:
        await store.register("http://two", None)
        successor = make_service(store, InProcessSupervisor())
        yield successor
        await successor.close()


async def crash(service: Service, successor: Service) -> None:
    """Nothing of the first server reaches Redis from now on, and its kernels are gone."""
    await successor._store.bury_others()
    await service._sessions.close_all()


def make_service(store: Store, supervisor: InProcessSupervisor) -> Service:
    return Service(
        store,
        supervisor,
        Tenants({}, Quota(sessions=3, running=8)),
        limits=LIMITS,
        runtimes=frozenset({"python"}),
        max_sessions=3,
        max_running=8,
        idle_ttl_s=60,
        park_after_s=60,
        min_free_memory_mb=0,
        replay_timeout_s=5,
    )


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(service, max_body_bytes=1000)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client

"""Room for kernels: on the server, and of each tenant."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cellar_client.schemas import Limits
from cellar_executor.background import Background
from cellar_executor.errors import Refusal
from cellar_executor.ids import Ref
from cellar_executor.records import SessionConfig
from cellar_executor.sessions import LiveSessions
from cellar_executor.tenancy.tenants import Quota, Tenants
from tests.unit.executor.fakes import InProcessSupervisor

QUOTA = Quota(sessions=10, running=1, memory_mb=1000)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def sessions() -> LiveSessions:
    return LiveSessions(InProcessSupervisor(), 5, Tenants({}, QUOTA), Background())


def config(memory_mb: int) -> SessionConfig:
    limits = Limits(cell_timeout_s=1, memory_mb=memory_mb, processes=1, disk_mb=1, output_bytes=1)
    return SessionConfig(runtime="python", limits=limits, recovery="fail", idle_ttl_s=1, seed=None, metadata={})


async def test_memory_that_is_reserved_counts_until_it_is_given_back(sessions: LiveSessions, stack: ExitStack) -> None:
    with sessions.reserve("t", 400, 2):
        with pytest.raises(Refusal, match="quota_exceeded") as refused, sessions.reserve("t", 201):
            pass
        assert refused.value.retry_after_s
        stack.enter_context(sessions.reserve("t", 200))
        stack.enter_context(sessions.reserve("other", 1000))
    stack.enter_context(sessions.reserve("t", 800))


async def test_memory_of_a_session_counts_while_its_kernel_lives(sessions: LiveSessions) -> None:
    live = await sessions.open(Ref("t", "a"), config(600))
    with pytest.raises(Refusal, match="quota_exceeded"), sessions.reserve("t", 401):
        pass
    with sessions.reserve("t", 600, replaced=1):  # a reset: one comes and the other goes
        pass
    assert live.kernel is not None
    await live.kernel.close()
    with sessions.reserve("t", 1000):
        pass


async def test_an_execution_counts_while_it_goes_on(sessions: LiveSessions) -> None:
    async with sessions.lone_kernel("t", config(700).limits, "python", None, "none"):
        with pytest.raises(Refusal, match="quota_exceeded"), sessions.reserve("t", 301):
            pass
    with sessions.reserve("t", 1000):
        pass


async def test_a_server_that_is_full_is_so_for_all(sessions: LiveSessions, stack: ExitStack) -> None:
    stack.enter_context(sessions.reserve("t", 1, 3))
    stack.enter_context(sessions.reserve("other", 1, 2))
    with pytest.raises(Refusal, match="too_many_sessions"), sessions.reserve("third", 1):
        pass

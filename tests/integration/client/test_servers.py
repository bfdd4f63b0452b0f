"""A client of several servers on one Redis: whichever of them dies, it goes on with the others."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cellar_client import AsyncCellar, AsyncSession, Cellar, SessionLost
from cellar_executor.redis_server import redis_server
from cellar_executor.settings import find_binary
from tests.executor_process import ExecutorProcess

LEASE_S = 2


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[ExecutorProcess]]:
    binary = find_binary("redis-server")
    assert binary is not None
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(binary, tmp_path / "redis"))
        flags = ("--redis-url", redis.url, "--lease-s", str(LEASE_S))
        quick = {"CELLAR_EXECUTOR_PREIMPORT": "python="}
        yield [stack.enter_context(ExecutorProcess(tmp_path / name, *flags, env=quick)) for name in ("a", "b")]


def created_by(server: ExecutorProcess) -> int:
    return server.log.count('"session created"')


def urls(servers: list[ExecutorProcess]) -> list[str]:
    return [server.url for server in servers]


async def opened(cellar: AsyncCellar, recovery: str) -> AsyncSession:
    session = cellar.attach((await cellar.create_session(recovery=recovery)).session_id)  # type: ignore[arg-type]
    await session.run("seen = []")
    return session


async def test_the_sessions_of_a_server_that_is_killed_go_on_or_are_lost_and_say_so(two: list[ExecutorProcess]) -> None:
    async with AsyncCellar(urls(two)) as cellar:
        replayed = [await opened(cellar, "replay") for _ in range(2)]
        failing = [await opened(cellar, "fail") for _ in range(2)]
        assert [created_by(server) for server in two] == [2, 2]
        two[0].kill()
        runs = await asyncio.gather(*(session.run("seen.append(1); seen") for session in replayed))
        assert [run.result for run in runs] == ["[1]", "[1]"]
        assert [(run.generation, run.recovered) for run in runs] == [(2, True), (1, False)]
        with pytest.raises(SessionLost):
            await failing[0].run("seen")
        assert (await failing[1].run("seen")).result == "[]"
        assert (await opened(cellar, "fail")).session_id
        assert created_by(two[1]) == 3


def test_a_server_that_stops_hands_its_sessions_over(two: list[ExecutorProcess]) -> None:
    with Cellar(",".join(urls(two))) as cellar, cellar.session(recovery="replay") as session:
        session.run("seen = []")
        two[0].stop()
        assert session.run("seen.append(1); seen").result == "[1]"
        assert session.run("seen.append(1); seen").result == "[1, 1]"

"""A cut connection is tried again, and nothing runs twice."""

import asyncio

import pytest

from cellar_client import NO_RETRIES, AsyncCellar, ConnectionFailed, calls
from tests.integration.client.cutting_proxy import CuttingProxy
from tests.integration.client.test_sessions import until_running

SLOW_COUNT = "import time\nlog = open('log', 'a'); log.write('x'); log.flush(); time.sleep(1)"
COUNTED = "len(open('log').read())"


async def test_a_run_cut_off_in_the_middle_runs_once(executor_url: str) -> None:
    async with CuttingProxy(executor_url) as proxy, AsyncCellar(proxy.url) as cellar, cellar.session() as session:
        running = asyncio.create_task(session.run(SLOW_COUNT))
        cell = await until_running(session)
        proxy.cut()
        run = await running
        assert [(ran.cell_id, ran.status) for ran in run.cells] == [(cell.cell_id, "ok")]
        assert (await session.run(COUNTED)).result == "1"
        assert len(await session.cells()) == 2


async def test_a_run_longer_than_the_silence_is_asked_for_again(
    executor_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "RUN_SILENCE_S", 0.2)
    async with AsyncCellar(executor_url) as cellar, cellar.session() as session:
        await session.queue(SLOW_COUNT)
        assert (await session.run(COUNTED)).result == "1"
        assert len(await session.cells()) == 2


async def test_a_run_whose_reply_is_lost_runs_once(executor_url: str) -> None:
    async with CuttingProxy(executor_url) as proxy, AsyncCellar(proxy.url) as cellar, cellar.session() as session:
        await session.run("count = 0")
        proxy.lose_reply(containing=b'"run_id"')
        run = await session.run("count += 1; count")
        assert run.result == "1"
        assert (await session.run("count")).result == "1"


async def test_a_session_whose_reply_is_lost_is_created_once(executor_url: str) -> None:
    async with CuttingProxy(executor_url) as proxy, AsyncCellar(proxy.url) as cellar:
        proxy.lose_reply(containing=b'"session_id"')
        async with cellar.session(metadata={"only": True}):
            found = [session async for session in cellar.sessions() if session.metadata == {"only": True}]
            assert len(found) == 1


async def test_without_retries_the_loss_is_raised(executor_url: str) -> None:
    async with CuttingProxy(executor_url) as proxy, AsyncCellar(proxy.url, retries=NO_RETRIES) as cellar:
        proxy.lose_reply(containing=b'"version"')
        with pytest.raises(ConnectionFailed):
            await cellar.info()

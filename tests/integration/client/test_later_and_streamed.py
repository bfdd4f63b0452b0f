"""Runs that are answered later or told as they go, with the real clients."""

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cellar_client import AsyncCellar, Cellar, SessionLost
from cellar_client.cli import app
from cellar_client.schemas import Cell, CellOutput, CellStarted, Run, RunAccepted, RunEvent
from tests.integration.client.cutting_proxy import CuttingProxy
from tests.integration.conftest import StartExecutor

UNTIL_INTERRUPTED = """
import time
print('first')
try:
    while True:
        time.sleep(0.05)
except KeyboardInterrupt:
    print('last')
"""


async def test_output_is_there_before_the_cell_ends(executor_url: str) -> None:
    async with AsyncCellar(executor_url) as cellar, cellar.session() as session:
        kinds: list[type[RunEvent]] = []
        text = ""
        async for event in session.stream_run(UNTIL_INTERRUPTED):
            kinds.append(type(event))
            if isinstance(event, CellOutput):
                if not text:
                    await session.interrupt()
                text += event.text
    assert text == "first\nlast\n"
    assert kinds == [RunAccepted, CellStarted, CellOutput, CellOutput, Cell, Run]


def test_the_blocking_client_tells_the_same(executor_url: str) -> None:
    with Cellar(executor_url) as cellar, cellar.session() as session:
        events = session.stream_run(UNTIL_INTERRUPTED)
        for event in events:
            if isinstance(event, CellOutput):
                break
        session.interrupt()
        *_, run = events
    assert isinstance(run, Run)
    assert run.stdout == "first\nlast\n"


async def test_a_stream_that_is_cut_goes_on_and_runs_once(executor_url: str) -> None:
    async with CuttingProxy(executor_url) as proxy, AsyncCellar(proxy.url) as cellar, cellar.session() as session:
        await session.run("import time; runs = 0")
        told: list[RunEvent] = []
        async for event in session.stream_run("print('x'); time.sleep(2); runs += 1; runs"):
            told.append(event)
            if isinstance(event, CellOutput):
                proxy.cut()
        assert [type(event) for event in told] == [RunAccepted, CellStarted, CellOutput, Run]
        assert isinstance(told[-1], Run)
        assert told[-1].result == "1"
        assert (await session.run("runs")).result == "1"


async def test_a_run_is_waited_for_from_anywhere(executor_url: str) -> None:
    async with AsyncCellar(executor_url) as cellar, cellar.session() as session:
        handle = await session.run_async("import time; time.sleep(0.5); 7")
        with pytest.raises(TimeoutError):
            await handle.wait(0)
        runs = await asyncio.gather(*(handle.wait() for _ in range(3)))
        assert [run.result for run in runs] == ["7"] * 3
        assert (await session.find_run(handle.run_id)) == runs[0]


def test_a_handle_says_that_its_session_is_lost(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with Cellar(executor.url) as cellar:
        session_id = cellar.create_session().session_id
        session = cellar.attach(session_id)
        running = session.run_async("import time; time.sleep(60)")
        queued = session.run_async("1")
        while not any(cell.status == "running" for cell in session.cells()):
            pass
        executor.kill()
    executor.start()
    with Cellar(executor.url) as cellar:
        session = cellar.attach(session_id)
        assert type(running)(session, running.run_id).wait().status == "lost"
        with pytest.raises(SessionLost):
            type(queued)(session, queued.run_id).wait()


def test_the_command_prints_as_it_goes(executor_url: str, tmp_path: Path) -> None:
    file = tmp_path / "cells.py"
    file.write_text("print('one')\n# %%\nimport sys; print('two', file=sys.stderr)\n# %%\n1 / 0\n")
    result = CliRunner().invoke(app, ["--url", executor_url, "run", "--stream", str(file)])
    assert (result.exit_code, result.stdout) == (1, "one\n")
    assert result.stderr.startswith("two\n")
    assert "ZeroDivisionError" in result.stderr

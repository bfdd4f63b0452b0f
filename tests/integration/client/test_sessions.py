"""Both clients against a real server: sessions, cells and runs."""

import asyncio

import pytest

from cellar_client import AsyncCellar, Cell, Cellar, SessionLost, SessionNotFound
from cellar_client.aio import AsyncSession


@pytest.fixture
async def cellar(executor_url: str) -> AsyncCellar:
    return AsyncCellar(executor_url)


async def until_running(session: AsyncSession) -> Cell:
    async with asyncio.timeout(30):
        while True:
            for cell in await session.cells():
                if cell.status == "running":
                    return cell
            await asyncio.sleep(0.01)


async def test_a_deferred_cell_runs_when_a_run_asks_for_it(cellar: AsyncCellar) -> None:
    async with cellar, cellar.session(limits={"memory_mb": 256}, seed=1, metadata={"task": 7}) as session:
        cell = await session.queue("x = 6")
        assert (cell.status, cell.index) == ("pending", 0)
        assert [queued.index for queued in await session.queue_all(["y = x * 7", "z = y"])] == [1, 2]
        run = await session.run("print(y)\nz", timeout_s=5.0)
        assert (run.status, run.stdout, run.result) == ("ok", "42\n", "42")
        assert [ran.status for ran in run.cells] == ["ok"] * 4
        assert (await session.cell(cell.cell_id)).status == "ok"
        info = await session.info()
        assert (info.cells_total, info.cells_pending) == (4, 0)
        assert (info.limits.memory_mb, info.seed, info.metadata) == (256, 1, {"task": 7})


@pytest.mark.parametrize("fails", [False, True])
async def test_a_session_is_gone_after_its_block(cellar: AsyncCellar, fails: bool) -> None:
    async with cellar:
        try:
            async with cellar.session() as session:
                session_id = session.session_id
                assert session_id in [found.session_id async for found in cellar.sessions()]
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert session_id not in [found.session_id async for found in cellar.sessions()]
        with pytest.raises(SessionNotFound):
            await cellar.attach(session_id).info()
        await cellar.delete_session(session_id)


async def test_a_failing_cell_is_a_result_and_stops_the_run(cellar: AsyncCellar) -> None:
    async with cellar, cellar.session() as session:
        await session.queue_all(["print('before')", "1 / 0", "print('after')"])
        run = await session.run()
        assert (run.status, run.stdout) == ("error", "before\n")
        assert [cell.status for cell in run.cells] == ["ok", "error", "skipped"]
        assert run.error is not None
        assert run.error.type == "ZeroDivisionError"
        await session.queue_all(["1 / 0", "print('after')"])
        assert (await session.run(on_error="continue")).stdout == "after\n"


async def test_a_withdrawn_cell_never_runs(cellar: AsyncCellar) -> None:
    async with cellar, cellar.session() as session:
        cell = await session.queue("print('no')")
        assert (await session.withdraw(cell.cell_id)).status == "withdrawn"
        assert (await session.run("print('yes')")).stdout == "yes\n"


async def test_an_interrupt_ends_the_cell_and_not_the_session(cellar: AsyncCellar) -> None:
    async with cellar, cellar.session() as session:
        await session.run("x = 1")
        running = asyncio.create_task(session.run("import time; time.sleep(60)"))
        await until_running(session)
        await session.interrupt()
        run = await running
        assert run.error is not None
        assert run.error.type == "KeyboardInterrupt"
        assert (await session.run("x")).result == "1"


async def test_a_reset_session_starts_anew(cellar: AsyncCellar) -> None:
    async with cellar, cellar.session() as session:
        await session.run("x = 1")
        assert (await session.reset()).generation == 2
        assert (await session.run("'x' in globals()")).result == "False"


async def test_a_session_whose_kernel_died_is_lost(cellar: AsyncCellar) -> None:
    async with cellar, cellar.session() as session:
        run = await session.run("import os; os._exit(1)")
        assert run.status == "killed"
        with pytest.raises(SessionLost):
            await session.run("1")


async def test_one_cell_runs_in_a_session_of_its_own(cellar: AsyncCellar) -> None:
    async with cellar:
        code = "import sys; print(open('in/a.bin', 'rb').read(), sys.stdin.read())"
        run = await cellar.execute(code, stdin="given", timeout_s=5.0, files={"in/a.bin": b"\xff\x00"})
        assert (run.status, run.stdout) == ("ok", "b'\\xff\\x00' given\n")
        assert run.session_id not in [found.session_id async for found in cellar.sessions()]


async def test_the_same_seed_gives_the_same_numbers(cellar: AsyncCellar) -> None:
    code = "import random; random.random()"
    async with cellar:
        first, second = [await cellar.execute(code, seed=seed) for seed in (1, 1)]
        assert first.result == second.result
        assert (await cellar.execute(code, seed=2)).result != first.result


async def test_many_sessions_are_listed_page_by_page(cellar: AsyncCellar) -> None:
    async with cellar:
        created = [(await cellar.create_session(metadata={"n": n})).session_id for n in range(3)]
        listed = [found.session_id async for found in cellar.sessions(page_size=1)]
        assert len(listed) == len(set(listed))
        assert set(created) <= set(listed)
        await asyncio.gather(*map(cellar.delete_session, created))


async def test_text_that_is_no_unicode_does_not_break_the_reply(cellar: AsyncCellar) -> None:
    async with cellar:
        run = await cellar.execute("import os; os.write(1, b'\\xff'); print('\\ud800'); '\\ud800'")
        assert (run.status, run.stdout, run.result) == ("ok", "\\xff\\ud800\n", "'\\ud800'")


async def test_the_server_tells_about_itself(cellar: AsyncCellar) -> None:
    async with cellar:
        info = await cellar.info()
        assert "python" in info.runtimes
        assert (await cellar.health()).status == "ok"
        assert (await cellar.readiness()).effective == info.isolation


def test_the_blocking_client_does_the_same(executor_url: str) -> None:
    with Cellar(executor_url) as cellar:
        with cellar.session() as session:
            session.queue_all(["x = 6", "y = x * 7"])
            assert session.run("print(y)").stdout == "42\n"
            assert session.session_id in [found.session_id for found in cellar.sessions()]
        with pytest.raises(SessionNotFound):
            session.info()
        assert cellar.execute("print(input())", stdin="hello").stdout == "hello\n"

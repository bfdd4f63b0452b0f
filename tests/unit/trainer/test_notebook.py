"""How a notebook talks to the executor: in few requests, with patience when there is no room, and never for ever."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from pydantic import ValidationError

from cellar_client import calls
from cellar_client.errors import CellarError, SessionLost
from cellar_client.operation import Operation
from cellar_client.schemas import Run
from cellar_trainer.rollouts import notebook as notebook_module
from cellar_trainer.rollouts.notebook import MAX_BLOCK_CHARS, MAX_BLOCKS, Notebook, can_run
from tests.scripted import InProcessCellar, InProcessSession


def notebook(cellar: InProcessCellar, **changes: Any) -> Notebook:
    return Notebook(cast(Any, cellar), seed=1, cell_timeout_s=1.0, idle_ttl_s=9.0, **changes)


async def test_blocks_share_their_names_over_runs_and_runs_cost_few_requests() -> None:
    cellar = InProcessCellar()
    async with notebook(cellar) as opened:
        assert (await opened.run(["x = 1", "print(x)"])).stdout == "1\n"
        assert cellar.requests == 1
        assert (await opened.run(["print(x + 1)"])).stdout == "2\n"
        assert cellar.requests == 2
        assert (await opened.run(["x = 5", "y = 6", "print(x * y)"])).stdout == "30\n"
        assert cellar.requests == 4
    assert cellar.closed == 1


async def test_a_notebook_that_ran_nothing_asks_for_nothing() -> None:
    cellar = InProcessCellar()
    async with notebook(cellar):
        pass
    assert cellar.requests == 0


async def test_a_session_that_there_is_no_room_for_is_waited_for_as_the_client_does() -> None:
    class Full(InProcessCellar):
        async def batch(self, operations: Any) -> list[Any]:
            return [CellarError("too many sessions")] * len(operations)

    cellar = Full()
    async with notebook(cellar) as opened:
        assert (await opened.run(["x = 1", "print(x)"])).stdout == "1\n"
    assert len(cellar.opened) == cellar.closed == 1


@pytest.mark.parametrize("step", [1, 2])
async def test_what_is_refused_in_a_session_is_not_done_twice(step: int) -> None:
    class Refusing(InProcessCellar):
        async def batch(self, operations: Any) -> list[Any]:
            results = await super().batch(operations)
            results[step] = CellarError("no")
            return results

    cellar = Refusing()
    with pytest.raises(CellarError, match="no"):
        async with notebook(cellar) as opened:
            await opened.run(["x = 1"])
    assert cellar.requests == 1
    assert cellar.closed == 1


async def test_a_session_that_cannot_be_deleted_holds_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(InProcessCellar):
        async def delete_session(self, session_id: str) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(notebook_module, "CLOSE_S", 0.01)
    async with asyncio.timeout(5), notebook(Stuck()) as opened:
        await opened.run(["x = 1"])
    assert "was not deleted" in caplog.text


async def test_a_session_whose_making_was_interrupted_is_deleted() -> None:
    class Slow(InProcessCellar):
        async def batch(self, operations: Sequence[Operation[Any]]) -> list[Any]:
            await self._do(operations[0])
            await asyncio.Event().wait()
            return []

    cellar = Slow()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), notebook(cellar) as opened:
            await opened.run(["x = 1"])
    assert cellar.closed == 1


@pytest.mark.parametrize("blocks", [["x = 5"], ["x = 5", "x += 1"]])
async def test_after_a_cell_that_killed_its_session_the_next_run_has_a_new_one(blocks: list[str]) -> None:
    cellar = InProcessCellar()
    async with notebook(cellar) as opened:
        await opened.run(["y = 1"])
        assert (await opened.run(["raise SystemExit"])).status == "killed"
        assert (await opened.run(blocks)).status == "ok"
        assert [*cellar.sessions.values()][0].names["x"] == 4 + len(blocks)
        assert (await opened.run(["y"])).status == "error", "its state is gone"
    assert len(cellar.opened) == cellar.closed == 2


async def test_an_atomic_run_that_could_not_be_rolled_back_is_the_cells_doing_too() -> None:
    class Unrepeatable(InProcessSession):
        async def run(self) -> Run:
            run = await super().run()
            self.lost = run.status == "error"
            return run.model_copy(update={"rolled_back": self.lost})

    cellar = InProcessCellar(make=Unrepeatable)
    async with notebook(cellar, atomic=True) as opened:
        await opened.run(["1 / 0"])
        assert (await opened.run(["x = 5"])).status == "ok"


@pytest.mark.parametrize("first", ["x = 1", "1 / 0"])
async def test_a_session_that_no_cell_of_ours_killed_is_a_failure_of_the_executor(first: str) -> None:
    cellar = InProcessCellar()
    async with notebook(cellar) as opened:
        await opened.run(["raise SystemExit"])
        await opened.run([first])
        for session in cellar.sessions.values():
            session.lost = True
        with pytest.raises(SessionLost):
            await opened.run(["x = 2"])


def test_what_can_be_run_is_what_the_wire_takes() -> None:
    longest = "x" * MAX_BLOCK_CHARS
    for blocks in (["x"] * MAX_BLOCKS, [longest]):
        calls.queue_all("s", blocks)
        assert can_run(blocks)
    for blocks in ([], ["x"] * (MAX_BLOCKS + 1), ["x", longest + "x"]):
        with pytest.raises(ValidationError):
            calls.queue_all("s", blocks)
        assert not can_run(blocks)

"""Each refusal of a real server arrives as its own class."""

from collections.abc import Awaitable, Callable

import pytest

from cellar_client import (
    NO_RETRIES,
    AsyncCellar,
    CellNotFound,
    CellNotPending,
    ConnectionFailed,
    IdempotencyMismatch,
    LimitTooHigh,
    Retries,
    ServerError,
    SessionExists,
    SessionNotFound,
    Unauthorized,
    UnknownRuntime,
)
from cellar_client.aio import AsyncSession


async def cell_that_ran(session: AsyncSession) -> None:
    await session.run("1", cell_id="ran")
    await session.withdraw("ran")


async def cell_with_another_code(session: AsyncSession) -> None:
    await session.queue("1", cell_id="once")
    await session.queue("2", cell_id="once")


async def session_with_a_used_id(session: AsyncSession) -> None:
    used = await session.cellar.create_session(session_id="used")
    await session.cellar.delete_session(used.session_id)
    await session.cellar.create_session(session_id=used.session_id)


REFUSALS: list[tuple[type[ServerError], Callable[[AsyncSession], Awaitable[object]]]] = [
    (SessionExists, session_with_a_used_id),
    (SessionNotFound, lambda session: session.cellar.attach("nowhere").run()),
    (CellNotFound, lambda session: session.cell("nowhere")),
    (CellNotPending, cell_that_ran),
    (IdempotencyMismatch, cell_with_another_code),
    (LimitTooHigh, lambda session: session.cellar.create_session(limits={"memory_mb": 1_000_000})),
    (UnknownRuntime, lambda session: session.cellar.create_session(runtime="cobol")),
]


@pytest.mark.parametrize(("kind", "call"), REFUSALS, ids=[kind.__name__ for kind, _ in REFUSALS])
async def test_a_refusal_arrives_as_its_class(
    executor_url: str, kind: type[ServerError], call: Callable[[AsyncSession], Awaitable[object]]
) -> None:
    async with AsyncCellar(executor_url, retries=NO_RETRIES) as cellar, cellar.session() as session:
        with pytest.raises(kind):
            await call(session)


async def test_a_key_opens_and_no_key_does_not(guarded_url: str, api_key: str) -> None:
    async with AsyncCellar(guarded_url, api_key=api_key) as cellar:
        assert (await cellar.execute("1")).result == "1"
    async with AsyncCellar(guarded_url, api_key="not" + api_key) as cellar:
        with pytest.raises(Unauthorized):
            await cellar.execute("1")


async def test_where_nobody_listens_the_connection_fails(free_port: int) -> None:
    quick = Retries(attempts=2, first_pause_s=0.001)
    async with AsyncCellar(f"http://127.0.0.1:{free_port}", retries=quick) as cellar:
        with pytest.raises(ConnectionFailed, match=str(free_port)):
            await cellar.info()

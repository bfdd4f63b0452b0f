"""Scripts over one connection: to a real Redis, and to one that misbehaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError, ResponseError

from cellar_executor.store.line import Line, Script

ECHO = Script("return ARGV[1]")


@pytest.fixture
async def line(redis_url: str) -> AsyncIterator[Line]:
    line = Line(redis_url, timeout_s=5)
    yield line
    line.close()


@asynccontextmanager
async def fake_redis(path: Path, *behaviours: str) -> AsyncIterator[Line]:
    """Answers each connection's requests as told: `hang up`, `say nothing`, or with that text. Then as the last."""
    waiting = list(behaviours)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behaviour = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        while behaviour != "hang up" and await reader.read(65536):
            if behaviour != "say nothing":
                writer.write(behaviour.encode())
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path)
    line = Line(f"unix://{path}", timeout_s=0.2)
    try:
        yield line
    finally:
        line.close()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)  # for the connections' own tasks


async def test_a_script_that_redis_does_not_know_yet_is_sent_whole(line: Line, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.script_flush()

    assert await line.run(ECHO, [], ["first"]) == "first"
    assert await line.run(ECHO, [], ["again"]) == "again"


async def test_each_of_many_at_once_gets_its_own_answer(line: Line) -> None:
    answers = await asyncio.gather(*(line.run(ECHO, [], [str(i)]) for i in range(200)))

    assert answers == [str(i) for i in range(200)]


async def test_keys_and_values_arrive_as_they_were(line: Line) -> None:
    script = Script("redis.call('SET', KEYS[1], ARGV[1]); return {redis.call('GET', KEYS[1]), ARGV[2] + 0.5, false}")

    assert await line.run(script, ["a key"], ["ä\r\n$3", 1.5]) == ["ä\r\n$3", 2, None]


async def test_an_error_goes_to_who_asked_and_the_line_goes_on(line: Line) -> None:
    failing = asyncio.create_task(line.run(Script("return redis.error_reply('FENCED no')"), [], []))
    fine = asyncio.create_task(line.run(ECHO, [], ["1"]))

    with pytest.raises(ResponseError, match="^FENCED no"):
        await failing
    assert await fine == "1"


async def test_an_answer_that_nobody_waits_for_is_not_the_next_ones(line: Line) -> None:
    asked = asyncio.create_task(line.run(ECHO, [], ["given up"]))
    await asyncio.sleep(0)
    asked.cancel()

    assert await line.run(ECHO, [], ["mine"]) == "mine"


async def test_a_database_of_its_own(redis_url: str) -> None:
    line = Line(f"{redis_url}?db=3", timeout_s=5)
    await line.run(Script("return redis.call('SET', 'where', 'there')"), [], [])
    line.close()

    async with Redis.from_url(redis_url, db=3, decode_responses=True) as redis:
        assert await redis.get("where") == "there"
        await redis.flushdb()


async def test_a_wrong_password_is_an_error(redis_url: str) -> None:
    line = Line(f"{redis_url}?password=wrong", timeout_s=5)

    with pytest.raises(ResponseError, match="AUTH|WRONGPASS"):
        await line.run(ECHO, [], ["1"])


async def test_a_lost_connection_fails_who_waits_and_is_made_again(tmp_path: Path) -> None:
    async with fake_redis(tmp_path / "s", "hang up", "$2\r\nok\r\n") as line:
        with pytest.raises(ConnectionError):
            await line.run(ECHO, [], [])
        assert await line.run(ECHO, [], []) == "ok"


async def test_a_redis_that_says_nothing_is_waited_for_only_so_long(tmp_path: Path) -> None:
    async with fake_redis(tmp_path / "s", "say nothing") as line:
        with pytest.raises(TimeoutError):
            await line.run(ECHO, [], [])


async def test_where_nothing_listens_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await Line(f"unix://{tmp_path}/nobody", timeout_s=5).run(ECHO, [], [])

"""Copies of a session, runs that roll back, files and tiers, through both clients."""

import pytest

from cellar_client import (
    AsyncCellar,
    Cellar,
    FileNotFound,
    InvalidPath,
    NotRepeatable,
    Run,
)
from cellar_client.schemas import Trust


@pytest.mark.parametrize("trust", ["isolated", "shared"])
async def test_copies_go_on_from_where_they_were_made(executor_url: str, trust: Trust) -> None:
    async with AsyncCellar(executor_url) as cellar, cellar.session() as session:
        await session.run("x = 6; open('note', 'w').write('kept')")
        forks = await session.fork(2, trust=trust)
        try:
            assert len({session.session_id, *(fork.session_id for fork in forks)}) == 3
            assert (await forks[0].run("x += 1; x, open('note').read()")).result == "(7, 'kept')"
            assert (await forks[1].run("x")).result == "6"
            assert (await session.run("x")).result == "6"
        finally:
            for fork in forks:
                await cellar.delete_session(fork.session_id)


def test_a_copy_has_the_id_that_was_asked_for(executor_url: str) -> None:
    with Cellar(executor_url) as cellar, cellar.session() as session:
        session.run("x = 1")
        (fork,) = session.fork(session_ids=["a-copy-of-mine"])
        assert fork.session_id == "a-copy-of-mine"
        assert fork.run("x").result == "1"
        cellar.delete_session(fork.session_id)


async def test_what_cannot_be_played_again_cannot_be_copied_apart(executor_url: str) -> None:
    async with AsyncCellar(executor_url) as cellar, cellar.session() as session:
        assert (await session.run("while True: pass", timeout_s=0.2)).status == "timeout"
        with pytest.raises(NotRepeatable):
            await session.fork()


async def test_an_atomic_run_that_fails_leaves_nothing(executor_url: str) -> None:
    async with AsyncCellar(executor_url) as cellar, cellar.session() as session:
        await session.run("x = 1")
        await session.queue("x = 2")
        run = await session.run("1 / 0", atomic=True)
        assert (run.status, run.rolled_back) == ("error", True)
        assert (await session.run("x")).result == "1"


async def test_files_go_in_and_out_as_their_bytes(executor_url: str) -> None:
    everything = bytes(range(256)) * 5000
    async with AsyncCellar(executor_url) as cellar, cellar.session() as session:
        await session.put_file("in/a b?#%41.bin", everything)
        assert (await session.run("open('in/a b?#%41.bin', 'rb').read() == bytes(range(256)) * 5000")).result == "True"
        await session.run("open('out.txt', 'w').write('é')")
        assert await session.get_file("out.txt") == "é".encode()
        assert await session.get_file("in/a b?#%41.bin") == everything
        listed = {file.path: file.size for file in (await session.files()).files}
        assert listed == {"in/a b?#%41.bin": len(everything), "out.txt": 2}
        await session.delete_file("out.txt")
        with pytest.raises(FileNotFound):
            await session.get_file("out.txt")


def test_files_of_the_blocking_client(executor_url: str) -> None:
    with Cellar(executor_url) as cellar, cellar.session() as session:
        session.put_file("empty", b"")
        assert session.get_file("empty") == b""
        session.run("import os; os.symlink('/etc/passwd', 'way-out')")
        with pytest.raises(InvalidPath):
            session.get_file("way-out")


async def test_a_stricter_tier_is_given_to_who_asks_for_it(executor_url: str) -> None:
    async with AsyncCellar(executor_url) as cellar:
        async with cellar.session(isolation="strict") as session:
            assert (await session.info()).isolation == "strict"
        assert isinstance(await cellar.execute("1", isolation="strict"), Run)

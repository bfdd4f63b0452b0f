"""Files take turns with cells, and are played again in their place among them."""

import asyncio
from typing import Any

import pytest

from cellar_client.schemas import CreateSession, QueueCells, RunRequest
from cellar_executor import durable
from cellar_executor.admission import MAX_NAME_BYTES, MAX_PATH_BYTES
from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.ids import Ids, Ref
from cellar_executor.kernel import KernelFileError, KernelUnavailable
from cellar_executor.service import Service
from cellar_executor.store import Store
from tests.unit.executor.conftest import LIMITS, QUOTAS, crash
from tests.unit.executor.fakes import InProcessSupervisor

REF = Ref("tenant", "s")
EVERY_BYTE = bytes(range(256))


@pytest.fixture(params=["replay"])
async def _session(service: Service, request: pytest.FixtureRequest) -> None:
    await service.create("tenant", CreateSession(session_id="s", recovery=request.param), Ids.fresh())


pytestmark = pytest.mark.usefixtures("_session")
FAIL = pytest.mark.parametrize("_session", ["fail"], indirect=True)


async def run(service: Service, code: str | None = None) -> str:
    return (await service.run(REF, RunRequest(code=code), Ids.fresh())).stdout


async def test_a_file_is_put_read_listed_and_deleted(service: Service) -> None:
    for _ in range(2):
        await service.put_file(REF, "d/f", EVERY_BYTE)
    assert await service.get_file(REF, "d/f") == EVERY_BYTE
    assert [(file.path, file.size) for file in (await service.files(REF)).files] == [("d/f", 256)]
    await service.delete_file(REF, "d/f")
    for attempt in (service.delete_file(REF, "d/f"), service.get_file(REF, "d/f")):
        with pytest.raises(Refusal, match="file_not_found"):
            await attempt


async def test_a_file_too_large_to_be_sent_is_refused(service: Service) -> None:
    await run(service, f"files['big'] = bytes({LIMITS.disk_mb * 2**20 + 1})")
    with pytest.raises(Refusal, match="file_too_large"):
        await service.get_file(REF, "big")


BAD_PATHS = {
    "empty": "",
    "absolute": "/etc/passwd",
    "upwards": "../f",
    "upwards inside": "a/../../f",
    "the folder": ".",
    "an empty name": "a//b",
    "a folder": "a/",
    "NUL": "a\0b",
    "long": "a/" * (MAX_PATH_BYTES // 2) + "a",
    "a long name": "é" * (MAX_NAME_BYTES // 2 + 1),
}


@pytest.mark.parametrize("what", BAD_PATHS)
async def test_a_path_that_is_none_reaches_no_kernel(
    service: Service, supervisor: InProcessSupervisor, what: str
) -> None:
    path = BAD_PATHS[what]
    for attempt in (service.put_file(REF, path, b""), service.get_file(REF, path), service.delete_file(REF, path)):
        with pytest.raises(Refusal, match="invalid_path"):
            await attempt
    assert supervisor.kernels[0].files == {}


async def test_a_backslash_is_a_letter(service: Service) -> None:
    await service.put_file(REF, "..\\f", b"1")
    assert await service.get_file(REF, "..\\f") == b"1"


async def test_files_are_played_again_in_their_place_among_the_cells(service: Service) -> None:
    await service.put_file(REF, "f", EVERY_BYTE)
    await run(service, "first = files['f']")
    await service.put_file(REF, "f", b"2")
    await run(service, "second = files['f']")
    await service.put_file(REF, "g", b"3")
    await service.delete_file(REF, "f")
    await run(service, "die()")
    assert await run(service, "print(list(first) == list(range(256)), second, files)") == "True b'2' {'g': b'3'}\n"


async def test_a_file_put_before_a_deferred_cell_runs_is_there_when_it_is_played_again(service: Service) -> None:
    await run(service, "seen = []")
    await service.queue(REF, QueueCells(code="seen.append(files['f'])"), Ids.fresh())
    await service.put_file(REF, "f", b"1")
    await run(service)
    await run(service, "die()")
    assert await run(service, "print(seen)") == "[b'1']\n"


async def test_a_reset_forgets_files(service: Service, store: Store) -> None:
    await service.put_file(REF, "f", b"x" * 9000)
    await service.reset(REF)
    assert (await service.files(REF)).files == []
    await run(service, "die()")
    assert await run(service, "print(files)") == "{}\n"
    await service.put_file(REF, "f", b"x" * 9000)


async def test_after_a_crash_what_was_acknowledged_is_there(service: Service, successor: Service) -> None:
    await service.put_file(REF, "f", EVERY_BYTE)
    await crash(service, successor)
    assert await successor.get_file(REF, "f") == EVERY_BYTE
    assert await run(successor, "print(len(files))") == "1\n"


@pytest.mark.parametrize("done", [True, False])
async def test_a_crash_before_the_acknowledgement_leaves_no_half_change(
    service: Service, successor: Service, supervisor: InProcessSupervisor, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    async def crash_now(*_: Any, **__: Any) -> None:
        await crash(service, successor)
        raise KernelUnavailable("the kernel is dead")

    await service.put_file(REF, "f", b"old")
    if done:
        monkeypatch.setattr(service._store, "keep_file", crash_now)
    else:
        monkeypatch.setattr(supervisor.kernels[0], "put_file", crash_now)
    with pytest.raises(Refusal):
        await service.put_file(REF, "f", b"new")
    assert await successor.get_file(REF, "f") == b"old"
    await successor.put_file(REF, "g", b"next")
    await run(successor, "die()")
    assert await run(successor, "print(files)") == "{'f': b'old', 'g': b'next'}\n"


async def test_while_redis_is_away_no_cell_sees_a_file_that_the_log_lacks(
    service: Service, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, back = store.keep_file, asyncio.Event()

    async def away(*args: Any) -> None:
        if not back.is_set():
            raise StoreUnavailable("away")
        await keep(*args)

    monkeypatch.setattr(store, "keep_file", away)
    monkeypatch.setattr(durable, "PATIENCE_S", 0.0)
    monkeypatch.setattr(durable, "RETRY_S", 0.01)
    with pytest.raises(StoreUnavailable):
        await service.put_file(REF, "f", b"1")
    waiting = asyncio.create_task(run(service, "print(files)"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    back.set()
    assert await waiting == "{'f': b'1'}\n"
    await run(service, "die()")
    assert await run(service, "print(files)") == "{'f': b'1'}\n"


async def test_a_change_that_the_kernel_refuses_is_not_played_again(
    service: Service, supervisor: InProcessSupervisor, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(path: str, data: bytes) -> None:
        raise KernelFileError("invalid_path", "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(supervisor.kernels[0], "put_file", refuse)
        with pytest.raises(Refusal, match="invalid_path: the disk is full"):
            await service.put_file(REF, "f", b"1")
    assert await store._redis.keys("cellar:file:*") == []
    await run(service, "die()")
    assert await run(service, "print(files)") == "{}\n"


async def test_files_wait_for_their_turn(service: Service) -> None:
    live = service._sessions.get(REF)
    assert live is not None
    async with live.my_turn():
        waiting = [
            asyncio.create_task(work)
            for work in (service.put_file(REF, "f", b"1"), service.get_file(REF, "f"), service.delete_file(REF, "f"))
        ]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
    assert await asyncio.gather(*waiting) == [None, b"1", None]


async def test_the_files_of_a_deleted_session_are_not_found(service: Service) -> None:
    live = service._sessions.get(REF)
    assert live is not None
    async with live.my_turn():
        waiting = [asyncio.create_task(service.put_file(REF, "f", b"1")), asyncio.create_task(service.files(REF))]
        await asyncio.sleep(0.05)
        await service.delete(REF)
    for refused in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(refused, Refusal)
        assert refused.code == "session_not_found"


@FAIL
async def test_a_lost_session_has_no_files(service: Service) -> None:
    await run(service, "die()")
    attempts = (service.put_file(REF, "f", b""), service.get_file(REF, "f"), service.files(REF))
    for attempt in (*attempts, service.delete_file(REF, "f")):
        with pytest.raises(Refusal, match="session_lost"):
            await attempt


@pytest.mark.parametrize(
    ("_session", "code"), [("fail", "session_lost"), ("replay", "kernel_unavailable")], indirect=["_session"]
)
async def test_a_kernel_that_dies_over_a_file_is_closed(
    service: Service, supervisor: InProcessSupervisor, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    async def die(path: str, data: bytes) -> None:
        supervisor.kernels[0].alive = False
        raise KernelUnavailable("the session died")

    monkeypatch.setattr(supervisor.kernels[0], "put_file", die)
    with pytest.raises(Refusal, match=code):
        await service.put_file(REF, "f", b"1")
    assert supervisor.kernels[0].closed
    if code == "kernel_unavailable":
        await service.put_file(REF, "f", b"1")
        assert await service.get_file(REF, "f") == b"1"


async def test_files_keep_a_session_from_expiring(service: Service, store: Store) -> None:
    await service.put_file(REF, "f", b"1")
    for use in (service.get_file(REF, "f"), service.files(REF), service.put_file(REF, "f", b"2")):
        before = (await store.session(REF)).expires_at
        await use
        assert (await store.session(REF)).expires_at > before


async def test_a_full_log_takes_no_file_and_the_kernel_gets_none(
    service: Service, supervisor: InProcessSupervisor
) -> None:
    with pytest.raises(Refusal, match="too_many_cells"):
        await service.put_file(REF, "f", bytes(QUOTAS.max_log_bytes))
    assert supervisor.kernels[0].files == {}
    await service.put_file(REF, "f", bytes(6000))
    with pytest.raises(Refusal, match="too_many_cells"):
        await service.queue(REF, QueueCells(code="x" * 6000), Ids.fresh())


async def test_a_file_put_again_takes_the_place_of_the_first(service: Service, store: Store) -> None:
    await service.put_file(REF, "f", bytes(4000))
    await service.put_file(REF, "f", bytes(4001))
    await service.put_file(REF, "f", bytes(4002))
    assert await store._redis.hget(f"cellar:session:{REF}", "bytes") == str(4002 + len("f"))
    await service.delete(REF)
    assert await store._redis.keys("cellar:file:*") == []

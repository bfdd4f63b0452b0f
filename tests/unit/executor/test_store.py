"""The scripts against a real Redis: what each change does, and what it refuses."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cellar_client.schemas import Cell
from cellar_executor.errors import Moved, Refusal, StoreUnavailable
from cellar_executor.ids import Ids, Owned, Ref
from cellar_executor.records import Begun, Known, RunHead, SessionConfig
from cellar_executor.store import Store, open_store
from tests.unit.executor.conftest import QUOTAS

REF = Ref("tenant", "session")
SESSION = Owned(REF, 1)
MAX = 3
"""Sessions of a tenant."""
TTL_S = 60.0


def head(run_id: str = "run-1", generation: int = 1) -> RunHead:
    return RunHead(run_id=run_id, generation=generation, queue_s=0, recovered=False)


def done(index: int, status: str = "ok", stdout: str = "") -> Cell:
    return Cell.model_validate({"cell_id": f"c{index}", "index": index, "status": status, "stdout": stdout})


async def begin(
    store: Store, run_id: str = "run-1", bound: int | None = None, cell: tuple[str, str] | None = None
) -> Begun:
    begun = await store.begin(SESSION, head(run_id), TTL_S, bound=bound, cell=cell)
    assert isinstance(begun, Begun)
    return begun


async def statuses(store: Store) -> list[str]:
    total = (await store.session(REF)).cells_total
    return [record.cell.status for record in await store.cells(REF, range(total))]


@pytest.fixture(autouse=True)
async def _session(store: Store, config: SessionConfig) -> None:
    await store.create(REF, config, origin="nonce", max_sessions=MAX)


@pytest.fixture
async def successor(store: Store, redis_url: str) -> AsyncIterator[Store]:
    """Another server on the same Redis; the first one dies by `store.unregister()`."""
    async with open_store(redis_url, "instance-2", QUOTAS) as other:
        await other.register("http://two", None)
        yield other


async def test_a_session_is_created_once(store: Store, config: SessionConfig) -> None:
    with pytest.raises(Refusal, match="session_exists"):
        await store.create(REF, config, origin="other", max_sessions=MAX)
    await store.create(REF, config, origin="nonce", max_sessions=MAX)
    record = await store.session(REF)
    assert (record.generation, record.cells_total, record.unrepeatable, record.config) == (1, 0, False, config)


async def test_no_more_sessions_than_the_quota(store: Store, config: SessionConfig) -> None:
    for name in ("a", "b"):
        await store.create(Ref("tenant", name), config, origin="", max_sessions=MAX)
    with pytest.raises(Refusal, match="too_many_sessions"):
        await store.create(Ref("tenant", "c"), config, origin="", max_sessions=MAX)


async def test_a_deleted_id_is_never_used_again(store: Store, config: SessionConfig) -> None:
    await store.accept(SESSION, [("c0", "1")], TTL_S)
    assert await store.delete(SESSION)
    with pytest.raises(Refusal, match="session_not_found"):
        await store.delete(SESSION)
    with pytest.raises(Refusal, match="session_exists"):
        await store.create(REF, config, origin="nonce", max_sessions=MAX)
    with pytest.raises(Refusal, match="session_not_found"):
        await store.session(REF)
    assert sorted(await store._redis.keys()) == [
        "cellar:deleted:tenant/session",
        "cellar:instance:instance-1",
        "cellar:instances",
    ]


async def test_the_tombstone_of_an_id_made_here_goes_with_its_key(store: Store, config: SessionConfig) -> None:
    ref = Ref("tenant", Ids.fresh().session())
    await store.create(ref, config, origin="", max_sessions=MAX)
    await store.delete(Owned(ref, 1))
    assert 0 < await store._redis.ttl(f"cellar:deleted:{ref}") <= QUOTAS.answer_ttl_s
    assert await store._redis.ttl(f"cellar:deleted:{REF}") < 0


async def test_cells_are_accepted_all_or_none(store: Store) -> None:
    await store.accept(SESSION, [("c0", "1")], TTL_S)
    with pytest.raises(Refusal, match="idempotency_mismatch"):
        await store.accept(SESSION, [("c1", "1"), ("c0", "other")], TTL_S)
    with pytest.raises(Refusal, match="too_many_cells"):
        await store.accept(SESSION, [(f"n{i}", "1") for i in range(4)], TTL_S)
    with pytest.raises(Refusal, match="too_many_cells"):
        await store.accept(SESSION, [("big", "x" * 20_000)], TTL_S)
    assert await statuses(store) == ["pending"]


async def test_cells_accepted_twice_are_found(store: Store) -> None:
    first = await store.accept(SESSION, [("c0", "1"), ("c1", "2")], TTL_S)
    again = await store.accept(SESSION, [("c1", "2"), ("c2", "3")], TTL_S)
    assert (first.indices, first.cells_before) == ([0, 1], 0)
    assert (again.indices, again.cells_before) == ([1, 2], 2)


async def test_a_run_starts_cells_one_after_the_other_up_to_its_bound(store: Store) -> None:
    await store.accept(SESSION, [("c0", "1")], TTL_S)
    begun = await begin(store, cell=("c1", "2"))
    assert begun.bound == 1
    assert begun.first is not None
    assert begun.first.code == "1"
    await store.accept(SESSION, [("c2", "3")], TTL_S)
    [second] = await store.step(SESSION, head(), done(0), begun.bound, TTL_S, go_on=True)
    assert second.cell_id == "c1"
    assert await store.step(SESSION, head(), done(1), begun.bound, TTL_S, go_on=True) == []
    assert await statuses(store) == ["ok", "ok", "pending"]


async def test_a_stopped_run_skips_the_rest_of_its_own_cells(store: Store) -> None:
    await store.accept(SESSION, [("c0", "1"), ("c1", "2"), ("c2", "3")], TTL_S)
    await begin(store, bound=1)
    skipped = await store.step(SESSION, head(), done(0, "error"), 1, TTL_S, go_on=False)
    assert [cell.index for cell in skipped] == [1]
    assert await statuses(store) == ["error", "skipped", "pending"]
    _, records = await store.run(REF, "run-1")
    assert [record.cell.index for record in records] == [0, 1]


@pytest.mark.parametrize("go_on", [True, False])
async def test_a_step_done_twice_answers_the_same(store: Store, go_on: bool) -> None:
    await store.accept(SESSION, [("c0", "1"), ("c1", "2")], TTL_S)
    await begin(store)
    answers = [await store.step(SESSION, head(), done(0), 1, TTL_S, go_on=go_on) for _ in range(2)]
    assert answers[0] == answers[1] != []


async def test_a_finished_cell_never_changes(store: Store) -> None:
    await begin(store, cell=("c0", "1"))
    await store.step(SESSION, head(), done(0, stdout="first"), 0, TTL_S, go_on=True)
    for other in (done(0, stdout="second"), done(0, "error", stdout="first")):
        with pytest.raises(RuntimeError):
            await store.step(SESSION, head(), other, 0, TTL_S, go_on=True)
    with pytest.raises(RuntimeError):
        await store.step(SESSION, head("run-2"), done(0, stdout="first"), 0, TTL_S, go_on=True)
    assert (await store.cell(REF, "c0")).cell.stdout == "first"


async def test_a_cell_of_a_dead_server_is_lost_and_stays_so(store: Store, successor: Store) -> None:
    await begin(store, cell=("c0", "1"))
    await store.unregister()
    taken = await successor.take(REF)
    assert (taken.owner, taken.epoch, taken.running) == ("instance-2", 2, False)
    owned = Owned(REF, 2)
    assert (await successor.cell(REF, "c0")).cell.status == "lost"
    assert await successor.begin(owned, head("run-2"), TTL_S, bound=None, cell=("c0", "1")) == Known(0)
    begun = await successor.begin(owned, head("run-3"), TTL_S, bound=None, cell=None)
    assert begun == Begun(bound=0, first=None)
    with pytest.raises(RuntimeError):
        await successor.step(owned, head(), done(0), 0, TTL_S, go_on=True)
    assert await statuses(successor) == ["lost"]


async def test_a_session_of_a_server_that_lives_is_not_taken(store: Store, successor: Store) -> None:
    with pytest.raises(Moved):
        await successor.take(REF)
    assert (await successor.elsewhere(REF), await store.elsewhere(REF)) == ("http://one", None)
    await store.unregister()
    assert await successor.elsewhere(REF) is None
    await successor.take(REF)
    await store.register("http://one", None)
    assert await store.elsewhere(REF) == "http://two"


async def test_a_server_without_a_lease_is_refused_everything(
    store: Store, successor: Store, config: SessionConfig
) -> None:
    await store.unregister()
    for refused in (
        store.accept(SESSION, [("c0", "1")], TTL_S),
        store.create(Ref("tenant", "new"), config, origin="", max_sessions=MAX),
        store.take(REF),
        store.claim("t:k", "digest", "nonce"),
    ):
        with pytest.raises(StoreUnavailable):
            await refused
    assert await statuses(successor) == []


async def test_a_server_that_had_the_session_before_is_refused(store: Store, successor: Store) -> None:
    moved: list[Owned] = []
    store.on_moved = moved.append
    await begin(store, cell=("c0", "1"))
    await store.unregister()
    await successor.take(REF)
    await store.register("http://one", None)
    for refused in (
        lambda: store.accept(SESSION, [("c1", "1")], TTL_S),
        lambda: store.step(SESSION, head(), done(0), 0, TTL_S, go_on=True),
        lambda: store.delete(SESSION),
        lambda: store.new_generation(SESSION, 2, TTL_S, reset=True),
        lambda: store.release(SESSION),
    ):
        with pytest.raises(Moved):
            await refused()
    assert moved == [SESSION] * 5
    assert await statuses(successor) == ["lost"]


async def test_an_epoch_that_is_over_is_refused_even_from_its_own_server(store: Store) -> None:
    await store.take(REF)
    with pytest.raises(Moved):
        await store.touch(SESSION, TTL_S)
    await store.touch(Owned(REF, 2), TTL_S)


async def test_a_session_that_was_given_up_is_anybodys(store: Store, successor: Store) -> None:
    await store.release(SESSION)
    assert await successor.elsewhere(REF) is None
    await successor.take(REF)
    with pytest.raises(Moved):
        await store.take(REF)


async def test_a_lease_ends_by_itself(store: Store) -> None:
    await store.register("http://one", 0.01)
    await asyncio.sleep(0.02)
    assert await store.instances() == {}
    assert await store._redis.smembers("cellar:instances") == set()


async def test_who_knows_that_all_others_are_dead_buries_them(store: Store, successor: Store) -> None:
    await successor.bury_others()
    assert await successor.instances() == {"instance-2": "http://two"}


async def test_a_begin_whose_reply_was_lost_is_as_if_it_never_was(store: Store) -> None:
    await begin(store, "given-up", cell=("c0", "1"))
    begun = await begin(store, "given-up", cell=("c0", "1"))
    assert begun.first is not None
    assert begun.first.cell_id == "c0"
    again = await begin(store, "next")
    assert again.first is not None
    assert again.first.cell_id == "c0"
    with pytest.raises(Refusal, match="run_not_found"):
        await store.run(REF, "given-up")


async def test_a_run_is_begun_once(store: Store) -> None:
    await begin(store, cell=("c0", "1"))
    await store.step(SESSION, head(), done(0), 0, TTL_S, go_on=True)
    assert await store.begin(SESSION, head(), TTL_S, bound=None, cell=("c0", "1")) == Known(None)
    assert await store.begin(SESSION, head("run-2"), TTL_S, bound=None, cell=("c0", "1")) == Known(0)


async def test_only_pending_cells_are_withdrawn(store: Store) -> None:
    await store.accept(SESSION, [("c0", "1"), ("c1", "2")], TTL_S)
    assert (await store.withdraw(SESSION, "c1", TTL_S)).cell.status == "withdrawn"
    await begin(store)
    with pytest.raises(Refusal, match="cell_not_pending"):
        await store.withdraw(SESSION, "c0", TTL_S)
    with pytest.raises(Refusal, match="cell_not_found"):
        await store.withdraw(SESSION, "c9", TTL_S)
    assert (await store.session(REF)).cells_pending == 0


async def test_use_puts_the_end_of_a_session_off(store: Store, config: SessionConfig) -> None:
    short = Ref("tenant", "short")
    await store.create(short, replace_ttl(config, 0.01), origin="", max_sessions=MAX)
    await asyncio.sleep(0.02)
    assert await store.expired() == [short]
    await store.accept(Owned(short, 1), [("c0", "1")], TTL_S)
    assert await store.expired() == []
    assert not await store.delete(Owned(short, 1), only_if_expired=True)


def replace_ttl(config: SessionConfig, idle_ttl_s: float) -> SessionConfig:
    return config.model_copy(update={"idle_ttl_s": idle_ttl_s})


async def test_a_reset_begins_a_generation_that_replays_nothing_older(store: Store) -> None:
    await store.mark_lost(SESSION)
    assert (await store.session(REF)).unrepeatable
    await store.new_generation(SESSION, 2, TTL_S, reset=False)
    record = await store.session(REF)
    assert (record.base_generation, record.unrepeatable) == (1, False)
    await store.new_generation(SESSION, 3, TTL_S, reset=True)
    assert (await store.session(REF)).base_generation == 3


async def test_sessions_are_listed_by_tenant_in_pages(store: Store, config: SessionConfig) -> None:
    await store.create(Ref("tenant", "a"), config, origin="", max_sessions=MAX)
    await store.create(Ref("other", "b"), config, origin="", max_sessions=MAX)
    assert [record.ref.session_id for record in await store.list_sessions("tenant", None, 1)] == ["a"]
    assert [record.ref.session_id for record in await store.list_sessions("tenant", "a", 9)] == ["session"]


async def test_a_key_is_claimed_once_and_its_answer_kept(store: Store) -> None:
    assert (await store.claim("t:k", "digest", "nonce")).kind == "first"
    assert await store.claim("t:k", "digest", "other") == replace(await store.claim("t:k", "digest", ""), nonce="nonce")
    with pytest.raises(Refusal, match="idempotency_mismatch"):
        await store.claim("t:k", "other", "")
    await store.settle("t:k", 201, "body")
    claim = await store.claim("t:k", "digest", "")
    assert (claim.kind, claim.status, claim.body) == ("answered", 201, "body")
    await store.unclaim("t:k", forget=True)
    assert (await store.claim("t:k", "other", "")).kind == "first"


async def test_a_claim_of_another_server_that_lives_is_left_to_it(store: Store, successor: Store) -> None:
    await store.claim("t:k", "digest", "nonce")
    assert (await successor.claim("t:k", "digest", "other")).kind == "in_progress"
    await store.unregister()
    claim = await successor.claim("t:k", "digest", "other")
    assert (claim.kind, claim.nonce) == ("unanswered", "nonce")
    await store.register("http://one", None)
    with pytest.raises(Moved):
        await store.settle("t:k", 200, "too late")
    await store.unclaim("t:k", forget=True)
    await successor.settle("t:k", 201, "body")
    assert (await store.claim("t:k", "digest", "")).body == "body"


async def test_a_full_redis_is_unavailable(store: Store) -> None:
    await store._redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable):
            await store.accept(SESSION, [("c0", "1")], TTL_S)
    finally:
        await store._redis.config_set("maxmemory", "0")


async def test_a_reset_makes_room_in_a_full_log(store: Store) -> None:
    begun = await begin(store, cell=("c0", "1"))
    await store.step(SESSION, head(), done(0, stdout="x" * QUOTAS.max_log_bytes), begun.bound, TTL_S, go_on=True)
    with pytest.raises(Refusal, match="too_many_cells"):
        await store.accept(SESSION, [("c1", "1")], TTL_S)
    await store.new_generation(SESSION, 2, TTL_S, reset=False)
    with pytest.raises(Refusal, match="too_many_cells"):
        await store.accept(SESSION, [("c1", "1")], TTL_S)
    await store.new_generation(SESSION, 3, TTL_S, reset=True)
    await store.accept(SESSION, [("c1", "x" * 6000)], TTL_S)


async def test_a_reset_still_counts_what_is_pending(store: Store) -> None:
    await store.accept(SESSION, [("c0", "x" * 6000)], TTL_S)
    await store.new_generation(SESSION, 2, TTL_S, reset=True)
    with pytest.raises(Refusal, match="too_many_cells"):
        await store.accept(SESSION, [("c1", "x" * 6000)], TTL_S)


async def test_runs_of_nothing_do_not_fill_the_store(store: Store) -> None:
    await begin(store, "run-0")
    counted = await store._redis.hget(f"cellar:session:{REF}", "bytes")
    assert counted == str(len(head("run-0").model_dump_json()))
    await store._redis.hset(f"cellar:session:{REF}", "bytes", QUOTAS.max_log_bytes)
    with pytest.raises(Refusal, match="too_many_cells"):
        await begin(store, "run-1")


async def test_what_is_pending_runs_though_the_log_is_full(store: Store) -> None:
    await store.accept(SESSION, [("c0", "1")], TTL_S)
    await store._redis.hset(f"cellar:session:{REF}", "bytes", QUOTAS.max_log_bytes)
    assert (await begin(store)).first is not None


async def test_what_a_run_left_half_done_is_marked_until_a_reset(store: Store) -> None:
    begun = await begin(store, cell=("c0", "1"))
    await store.step(SESSION, head(), done(0, "timeout"), begun.bound, TTL_S, go_on=False, repeatable=False)
    assert (await store.session(REF)).unrepeatable
    await store.new_generation(SESSION, 2, TTL_S, reset=True)
    assert not (await store.session(REF)).unrepeatable


async def test_what_an_earlier_version_left_still_loads(store: Store, config: SessionConfig) -> None:
    key = f"cellar:session:{REF}"
    old = config.model_dump_json(exclude={"isolation"})
    await store._redis.hset(key, "config", old)
    await store._redis.hdel(key, "files")
    await begin(store, cell=("c0", "1"))
    await store._redis.hset(
        f"cellar:cell:{REF}:0", mapping={"status": "ok", "outcome": '{"stdout": "1", "duration_s": 0.5}'}
    )
    assert (await store.session(REF)).config.isolation == "none"
    cell = (await store.cell(REF, "c0")).cell
    assert (cell.stdout, cell.cpu_s, cell.peak_memory_bytes) == ("1", None, None)
    assert await store.file_changes(REF) == []
    await store.keep_file(SESSION, await store.stage_file(SESSION, "f", b"1", TTL_S), TTL_S)
    assert len(await store.file_changes(REF)) == 1
    await store.fork(SESSION, [Ref("tenant", "copy")], TTL_S, origin="n", max_sessions=MAX)
    await store.delete(SESSION)
    await store.delete(Owned(Ref("tenant", "copy"), 1))
    assert await store._redis.keys("cellar:*:tenant/*:*") == []


async def test_a_file_is_kept_once_however_often_it_is_said(store: Store) -> None:
    number = await store.stage_file(SESSION, "f", b"\xff\x00", TTL_S)
    for _ in range(2):
        await store.keep_file(SESSION, number, TTL_S)
    second = await store.stage_file(SESSION, "f", b"12", TTL_S)
    for _ in range(2):
        await store.keep_file(SESSION, second, TTL_S)
    [change] = await store.file_changes(REF)
    assert await store.file_data(REF, change.number) == b"12"
    assert await store._redis.hget(f"cellar:session:{REF}", "bytes") == "3"


async def test_a_file_put_after_a_deletion_is_a_change_of_its_own(store: Store) -> None:
    for data in (b"1", None, b"2"):
        await store.keep_file(SESSION, await store.stage_file(SESSION, "f", data, TTL_S), TTL_S)
    assert [change.deletes for change in await store.file_changes(REF)] == [False, True, False]


async def test_a_cell_that_never_reached_its_kernel_sees_a_file_put_before_it_runs(store: Store) -> None:
    """The reply of the script that started it was lost on the way, so it is pending again."""
    await begin(store, cell=("c0", "1"))
    await store.keep_file(SESSION, await store.stage_file(SESSION, "f", b"1", TTL_S), TTL_S)
    assert await statuses(store) == ["pending"]
    assert [change.before for change in await store.file_changes(REF)] == [0]


async def test_copies_are_made_all_or_none_and_share_nothing(store: Store) -> None:
    await begin(store, cell=("c0", "1"))
    await store.step(SESSION, head(), done(0), 0, TTL_S, go_on=True)
    await store.accept(SESSION, [("c1", "2")], TTL_S)
    await store.keep_file(SESSION, await store.stage_file(SESSION, "f", b"1", TTL_S), TTL_S)
    copies = [Ref("tenant", "a"), Ref("tenant", "b")]
    with pytest.raises(Refusal, match="session_exists"):
        await store.fork(SESSION, [copies[0], REF], TTL_S, origin="n", max_sessions=MAX)
    with pytest.raises(Refusal, match="session_not_found"):
        await store.session(copies[0])
    records = await store.fork(SESSION, copies, TTL_S, origin="n", max_sessions=MAX)
    assert [(record.cells_total, record.cells_pending, record.generation) for record in records] == [(2, 1, 1)] * 2
    await store.delete(SESSION)
    await store.delete(Owned(copies[0], 1))
    assert await store.file_data(copies[1], 0) == b"1"
    assert (await store.run(copies[1], "run-1"))[1][0].cell.cell_id == "c0"
    begun = await store.begin(Owned(copies[1], 1), head("run-2"), TTL_S, bound=None, cell=None)
    assert isinstance(begun, Begun)
    assert begun.first is not None
    assert begun.first.code == "2"

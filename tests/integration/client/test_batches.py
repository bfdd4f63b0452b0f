"""Many operations in one request."""

from uuid import uuid4

import pytest

from cellar_client import AsyncCellar, Cellar, Run, Session, SessionNotFound, calls
from tests.integration.client.cutting_proxy import CuttingProxy


async def test_each_operation_has_its_own_answer(executor_url: str) -> None:
    a, b = f"a-{uuid4().hex}", f"b-{uuid4().hex}"
    async with AsyncCellar(executor_url) as cellar:
        results = await cellar.batch(
            [
                calls.create_session(session_id=a),
                calls.create_session(session_id=b),
                calls.queue_all(a, ["x = 1", "x += 1"]),
                calls.run(a, "x"),
                calls.run(b, "1 / 0"),
                calls.run("nowhere", "1"),
                calls.delete_session(a),
                calls.delete_session(b),
                calls.execute("2 ** 10"),
            ]
        )
    created, _, queued, ran, failed, refused, deleted, _, executed = results
    assert isinstance(created, Session)
    assert isinstance(queued, list)
    assert [cell.status for cell in queued] == ["pending", "pending"]
    assert isinstance(ran, Run)
    assert ran.result == "2"
    assert isinstance(failed, Run)
    assert failed.status == "error"
    assert isinstance(refused, SessionNotFound)
    assert deleted is None
    assert isinstance(executed, Run)
    assert executed.result == "1024"


def test_a_batch_longer_than_one_request_is_done_in_order(executor_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BATCH_SIZE", 3)
    with Cellar(executor_url) as cellar, cellar.session() as session:
        session.run("seen = []")
        appends = [calls.queue(session.session_id, f"seen.append({n})") for n in range(7)]
        last = cellar.batch([*appends, calls.run(session.session_id, "seen")])[-1]
        assert isinstance(last, Run)
        assert last.result == str(list(range(7)))


async def test_a_batch_whose_reply_is_lost_is_done_once(executor_url: str) -> None:
    async with CuttingProxy(executor_url) as proxy, AsyncCellar(proxy.url) as cellar, cellar.session() as session:
        await session.run("count = 0")
        proxy.lose_reply(containing=b'"results"')
        runs = await cellar.batch([calls.run(session.session_id, "count += 1; count")] * 3)
        assert [run.result for run in runs if isinstance(run, Run)] == ["1", "2", "3"]

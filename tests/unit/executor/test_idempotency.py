"""Who answers a key when several servers share a Redis."""

import asyncio

import pytest
from pydantic import BaseModel

from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.idempotency import Idempotency, Key, Operation
from cellar_executor.ids import Ids
from cellar_executor.service import Service
from cellar_executor.store import Store

KEY = Key("tenant", "key", "POST /v1/sessions\n")


class Done(BaseModel):
    nonce: str


class Work:
    """Counts how often it is done; refused by what `refusals` has left."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)
        self.nonces: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    def operation(self, *, keep_answer: bool = True, refused_left_nothing: bool = False) -> Operation:
        return Operation(self._do, None, keep_answer=keep_answer, refused_left_nothing=refused_left_nothing)

    async def _do(self, ids: Ids) -> Done:
        self.nonces.append(ids.nonce)
        await self.go_on.wait()
        if self.refusals:
            raise self.refusals.pop(0)
        return Done(nonce=ids.nonce)


def idempotency(service: Service) -> Idempotency:
    return service.idempotency


async def test_while_one_server_answers_the_others_wait(service: Service, successor: Service) -> None:
    work = Work()
    work.go_on.clear()
    first = asyncio.create_task(idempotency(service).answer(work.operation(), KEY))
    while not work.nonces:  # noqa: ASYNC110  # the work itself says so
        await asyncio.sleep(0.001)
    with pytest.raises(Refusal, match="request_in_progress"):
        await idempotency(successor).answer(work.operation(), KEY)
    work.go_on.set()
    answer = await first
    again = await idempotency(successor).answer(work.operation(), KEY)
    assert (again.body, again.replayed) == (answer.body, True)
    assert len(work.nonces) == 1


@pytest.mark.parametrize("refused_left_nothing", [True, False])
async def test_after_a_refusal_another_server_may_answer(
    service: Service, successor: Service, refused_left_nothing: bool
) -> None:
    work = Work(Refusal("kernel_unavailable"))
    operation = work.operation(refused_left_nothing=refused_left_nothing)
    with pytest.raises(Refusal, match="kernel_unavailable"):
        await idempotency(service).answer(operation, KEY)
    await idempotency(successor).answer(operation, KEY)
    assert (work.nonces[0] == work.nonces[1]) != refused_left_nothing


async def test_after_a_silence_of_redis_nobody_answers_until_it_knows(
    service: Service, successor: Service, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unclaim, silent = store.unclaim, True

    async def unclaim_later(name: str, *, forget: bool) -> None:
        if silent:
            raise StoreUnavailable("silent")
        await unclaim(name, forget=forget)

    monkeypatch.setattr(store, "unclaim", unclaim_later)
    monkeypatch.setattr("cellar_executor.idempotency.GIVE_UP_S", 0.01)
    work = Work(StoreUnavailable("silent"))
    with pytest.raises(StoreUnavailable):
        await idempotency(service).answer(work.operation(), KEY)
    for one in (service, successor):
        with pytest.raises(Refusal, match="request_in_progress"):
            await idempotency(one).answer(work.operation(), KEY)
    silent = False
    await service.background.drain(5)
    assert (await idempotency(successor).answer(work.operation(), KEY)).body == Done(
        nonce=work.nonces[0]
    ).model_dump_json()
    assert len(set(work.nonces)) == 1


async def test_what_answers_from_its_record_is_nobodys_alone(service: Service, successor: Service) -> None:
    work = Work()
    operation = work.operation(keep_answer=False)
    await idempotency(service).answer(operation, KEY)
    await idempotency(successor).answer(operation, KEY)
    assert work.nonces[0] == work.nonces[1]

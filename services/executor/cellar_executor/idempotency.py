"""At most once: the `Idempotency-Key` header.

The first request with a key claims it: Redis keeps, under tenant and key, the digest of the request and a random nonce.
Every id the request gives to what it makes (session, run, cells) is derived from that nonce. Its answer is then kept
beside the claim. A later request with the key finds

* another digest: `idempotency_mismatch`;
* the first one still being answered by this server: `request_in_progress`;
* an answer: that answer, and nothing is done;
* the first one still being answered by another server that lives: `request_in_progress`;
* a claim without an answer, because the server died or refused for a while: it is answered as if it were the first,
  under the same ids, and so finds what the first one did. A cell that is pending is run; one that was started by a
  dead server is `lost`; one that finished gives its run.

Runs are not kept a second time: their cells are their record, and the last case answers for them. Refusals are not kept
either: they left nothing behind, or what they left is found again.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from cellar_executor.background import Background
from cellar_executor.durable import retried
from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.ids import Ids
from cellar_executor.store import Store

GIVE_UP_S = 1.0
"""How long a refusal waits for Redis to know of it."""

Work = Callable[[Ids], Coroutine[Any, Any, BaseModel | None]]
"""Does what a request asks, under these ids."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What a POST, or one part of a batch, asks for."""

    work: Work
    body: BaseModel | None = None
    status: int = 200
    """Of the answer, if all goes well."""
    keep_answer: bool = True
    """False where the record of what was done gives the same answer again."""
    refused_left_nothing: bool = False
    """Whether a refused request may be tried again as new; else it is resumed under its first ids."""


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key, and the request that came with it."""

    tenant: str
    key: str
    request: str
    """Method, path and body: what has to be the same the second time."""

    @property
    def name(self) -> str:
        return f"{self.tenant}:{hashlib.sha256(self.key.encode()).hexdigest()}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.request.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: str
    replayed: bool = False


class Idempotency:
    def __init__(self, store: Store, background: Background) -> None:
        self._store = store
        self._background = background
        self._in_flight: dict[str, str] = {}

    async def answer(self, operation: Operation, key: Key | None) -> Answer:
        """The answer to an operation, with a key the first one. It is done to its end whatever becomes of the caller.

        Raises what its work raises, and what the list above names.
        """
        if key is None:
            reply = await self._background.finish(operation.work(Ids.fresh()))
            return Answer(operation.status, render(reply))
        if (digest := self._in_flight.get(key.name)) is not None:
            raise Refusal("request_in_progress" if digest == key.digest else "idempotency_mismatch")
        self._in_flight[key.name] = key.digest
        return await self._background.finish(self._claimed(operation, key))

    async def _claimed(self, operation: Operation, key: Key) -> Answer:
        try:
            answer = await self._first_or_kept(operation, key)
        except Exception as error:
            # After a silence of Redis what was done is unknown; the next request with the key finds out.
            refused = isinstance(error, Refusal) and not isinstance(error, StoreUnavailable)
            giving_up = self._give_up(key, forget=refused and operation.refused_left_nothing)
            await asyncio.wait([self._background.start(giving_up)], timeout=GIVE_UP_S)
            raise
        del self._in_flight[key.name]
        return answer

    async def _first_or_kept(self, operation: Operation, key: Key) -> Answer:
        nonce = Ids.fresh().nonce
        claim = await self._store.claim(key.name, key.digest, nonce, to_settle=operation.keep_answer)
        if claim.kind == "in_progress":
            raise Refusal("request_in_progress", "another server answers it")
        if claim.kind == "answered":
            return Answer(claim.status, claim.body, replayed=True)
        resumed = claim.kind == "unanswered"
        body = render(await operation.work(Ids(claim.nonce, resumed)))
        if operation.keep_answer:
            await self._store.settle(key.name, operation.status, body)
        return Answer(operation.status, body, replayed=resumed)

    async def _give_up(self, key: Key, *, forget: bool) -> None:
        """The request is not answered: whoever gets it next may, here or elsewhere. Until Redis knows, nobody does."""
        try:
            await retried(lambda: self._store.unclaim(key.name, forget=forget))
        finally:
            del self._in_flight[key.name]


def render(reply: BaseModel | None) -> str:
    return "" if reply is None else reply.model_dump_json()

"""At most once: the `Idempotency-Key` header.

The first request with a key claims it: Redis keeps, under tenant and key, the digest of the request and a random nonce.
Every id the request gives to what it makes (session, run, cells) is derived from that nonce. Its answer is then kept
beside the claim. A later request with the key finds

* another digest: `idempotency_mismatch`;
* the first one still being answered by this server: `request_in_progress`;
* an answer: that answer, and nothing is done;
* a claim without an answer, because the server died or refused for a while: it is answered as if it were the first,
  under the same ids, and so finds what the first one did. A cell that is pending is run; one that was started by a
  dead server is `lost`; one that finished gives its run.

Runs are not kept a second time: their cells are their record, and the last case answers for them. Refusals are not kept
either: they left nothing behind, or what they left is found again.
"""

import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from cellar_executor.background import Background
from cellar_executor.errors import Refusal, StoreUnavailable
from cellar_executor.ids import Ids
from cellar_executor.records import Claim
from cellar_executor.store import Store

Work = Callable[[Ids], Coroutine[Any, Any, BaseModel | None]]
"""Does what the request asks, under these ids."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: str
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Once:
    """One request as the key sees it."""

    tenant: str
    key: str
    request: str
    """Method, path and body: what has to be the same the second time."""
    status: int
    """Of the answer, if all goes well."""
    keep_answer: bool = True
    """False where the record of what was done gives the same answer again."""
    refused_left_nothing: bool = False
    """Whether a refused request may be tried again as new; else it is resumed under its first ids."""

    @property
    def name(self) -> str:
        return f"{self.tenant}:{hashlib.sha256(self.key.encode()).hexdigest()}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.request.encode()).hexdigest()


class Idempotency:
    def __init__(self, store: Store, background: Background) -> None:
        self._store = store
        self._background = background
        self._in_flight: dict[str, str] = {}

    async def answer(self, once: Once, work: Work) -> Answer:
        """The first answer to this key, found or made. Raises what `work` raises, and what the list above names."""
        if (digest := self._in_flight.get(once.name)) is not None:
            raise Refusal("request_in_progress" if digest == once.digest else "idempotency_mismatch")
        self._in_flight[once.name] = once.digest
        return await self._background.finish(self._claimed(once, work))

    async def _claimed(self, once: Once, work: Work) -> Answer:
        try:
            claim = await self._store.claim(once.name, once.digest, Ids.fresh().nonce)
            if claim.kind == "mismatch":
                raise Refusal("idempotency_mismatch", "this key came with another request before")
            if claim.kind == "answered":
                return Answer(claim.status, claim.body, replayed=True)
            return await self._do(once, work, claim)
        finally:
            del self._in_flight[once.name]

    async def _do(self, once: Once, work: Work, claim: Claim) -> Answer:
        resumed = claim.kind == "unanswered"
        try:
            body = render(await work(Ids(claim.nonce, resumed)))
        except StoreUnavailable:
            raise  # what was done is unknown: the claim stays, and the next request with the key finds out
        except Refusal:
            if once.refused_left_nothing:
                await self._store.unclaim(once.name)
            raise
        if once.keep_answer:
            await self._store.settle(once.name, once.status, body)
        return Answer(once.status, body, replayed=resumed)


def render(reply: BaseModel | None) -> str:
    return "" if reply is None else reply.model_dump_json()

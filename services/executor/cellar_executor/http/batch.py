"""`POST /v1/batch`: many operations in one request. Those on one session keep their order, others run side by side.

Each is answered as its own route would: an error of one is its own result, and the others go on. With an idempotency
key each is claimed under a key of its own, made from the batch's and its position, so that a batch that is sent again
finds what was done, operation by operation. Such a key has a space in it, so no client's key is like it.

From the first operation whose session is held by another server on, all on that session go there, as a batch of their
own that keeps the key and the positions: the keys of the operations are the same wherever they are done.
"""

import asyncio
import logging
import re
from dataclasses import dataclass, replace

from pydantic_core import from_json

from cellar_client.schemas import (
    BatchCreate,
    BatchDelete,
    BatchExecute,
    BatchOperation,
    BatchQueue,
    BatchReply,
    BatchRequest,
    BatchResult,
    BatchRun,
)
from cellar_executor.errors import Refusal, invalid_field, problem_of
from cellar_executor.http import operations
from cellar_executor.http.peers import Errand, Peers, RawHeaders
from cellar_executor.idempotency import Key, Operation
from cellar_executor.ids import Ref
from cellar_executor.service import Service

AT_ONCE = 64
"""Operations of one batch; each that waits for a cell counts, and those on one session that go elsewhere are one."""
MAX_REPLY_BYTES = 32 << 20
"""When the answers have so many, no more operations are begun: what is not begun can be sent again."""
POSITIONS = "Cellar-Batch-Positions"
"""The places, comma-separated, that the operations have in the batch which they are part of.

A client that sends it itself chooses the keys of its operations among its own tenant's, and nothing else.
"""
POSITION = re.compile(r"[0-9]{1,3}")

Lane = list[tuple[int, BatchOperation]]
"""Operations and their positions in the batch."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a batch, and the way to the servers that hold its sessions."""

    tenant: str
    key: str | None
    headers: RawHeaders
    peers: Peers | None
    """None: there is no other server."""


def batch(service: Service, sender: Sender, body: BatchRequest, positions: str | None) -> Operation:
    """The batch as an operation: what it did is kept by the operations in it. Raises `invalid_request`."""
    places = range(len(body.operations)) if positions is None else _places(positions, len(body.operations))

    parts = list(zip(places, body.operations, strict=True))

    async def work(_: object) -> BatchReply:
        return BatchReply(results=await _Batch(service, sender).results(parts))

    return Operation(work, body, keep_answer=False)


def _places(positions: str, operations: int) -> list[int]:
    places = positions.split(",")
    if not all(POSITION.fullmatch(place) for place in places) or not len(set(places)) == len(places) == operations:
        raise invalid_field(POSITIONS, "one number from 0 to 999 for each operation")
    return [int(place) for place in places]


class _Batch:
    def __init__(self, service: Service, sender: Sender) -> None:
        self._service = service
        self._sender = sender
        self._room = asyncio.Semaphore(AT_ONCE)
        self._reply_bytes = 0

    async def results(self, parts: Lane) -> list[BatchResult]:
        lanes: dict[str | int, Lane] = {}
        for position, part in parts:
            lanes.setdefault(_session_id(part) or position, []).append((position, part))
        results: dict[int, BatchResult] = {}

        async def run(lane: Lane) -> None:
            done = 0
            while done < len(lane):
                for result in await self._next_results(lane[done:]):
                    results[lane[done][0]] = result
                    done += 1

        await asyncio.gather(*map(run, lanes.values()))
        return [results[position] for position, _ in parts]

    async def _next_results(self, left: Lane) -> list[BatchResult]:
        """That of the first operation, or those of all if they are done by the server that holds their session."""
        position, part = left[0]
        asked = 1
        try:
            async with self._room:
                if self._reply_bytes > MAX_REPLY_BYTES:
                    raise Refusal("reply_too_large", "the operation was not begun; send it again in another batch")
                if (elsewhere := await self._elsewhere(part)) is None:
                    return [await self._result(position, part)]
                asked = len(left)
                return await self._results_from(*elsewhere, left)
        except Refusal as refusal:
            return [_refused(refusal)] * asked
        except Exception:
            log.exception("an operation of a batch failed")
            return [_refused(Refusal("internal_error"))] * asked

    async def _elsewhere(self, part: BatchOperation) -> tuple[Peers, Ref, str] | None:
        peers = self._sender.peers
        if peers is None or isinstance(part, BatchCreate | BatchExecute):
            return None
        ref = Ref(self._sender.tenant, part.session_id)
        url = await peers.owner(ref, self._sender.headers)
        return None if url is None else (peers, ref, url)

    async def _results_from(self, peers: Peers, ref: Ref, url: str, left: Lane) -> list[BatchResult]:
        async with peers.ask(ref, url, self._errand(left)) as response:
            answer = await response.read()
        self._reply_bytes += len(answer)
        if response.status != 200:
            return [BatchResult(status=response.status, body=from_json(answer))] * len(left)
        results = BatchReply.model_validate_json(answer).results
        if len(results) != len(left):
            raise ValueError(f"{len(results)} results of {len(left)} operations")
        return results

    def _errand(self, left: Lane) -> Errand:
        name = POSITIONS.lower().encode()
        headers = [(header, value) for header, value in self._sender.headers if header.lower() != name]
        headers.append((name, ",".join(str(position) for position, _ in left).encode()))
        body = BatchRequest(operations=[part for _, part in left])
        return Errand("POST", "/v1/batch", headers, body.model_dump_json(exclude_unset=True).encode())

    async def _result(self, position: int, part: BatchOperation) -> BatchResult:
        # A run is kept here too: a later operation of the same batch may delete the session that has its record.
        operation = replace(self._operation(part), keep_answer=True)
        answer = await self._service.idempotency.answer(operation, self._key_of(position, part))
        self._reply_bytes += len(answer.body)
        return BatchResult(status=answer.status, body=from_json(answer.body) if answer.body else None)

    def _operation(self, part: BatchOperation) -> Operation:
        tenant = self._sender.tenant
        match part:
            case BatchCreate():
                return operations.create(self._service, tenant, part)
            case BatchQueue():
                return operations.queue(self._service, Ref(tenant, part.session_id), part)
            case BatchRun():
                return operations.run(self._service, Ref(tenant, part.session_id), part)
            case BatchDelete():
                return operations.delete(self._service, Ref(tenant, part.session_id))
            case BatchExecute():
                return operations.execute(self._service, tenant, part)

    def _key_of(self, position: int, part: BatchOperation) -> Key | None:
        sender = self._sender
        if sender.key is None:
            return None
        return Key(sender.tenant, f"{sender.key} {position}", f"batch\n{part.model_dump_json()}")


def _session_id(part: BatchOperation) -> str | None:
    return None if isinstance(part, BatchExecute) else part.session_id


def _refused(refusal: Refusal) -> BatchResult:
    problem = problem_of(refusal)
    return BatchResult(status=problem.status, body=problem.model_dump(mode="json"))

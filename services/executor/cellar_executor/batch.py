"""`POST /v1/batch`: many operations in one request. Those on one session keep their order, others run side by side.

Each is answered as its own route would: an error of one is its own result, and the others go on. With an idempotency
key each is claimed under a key of its own, made from the batch's and its position, so that a batch that is sent again
finds what was done, operation by operation. Such a key has a space in it, so no client's key is like it.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

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
from cellar_executor import operations
from cellar_executor.errors import Refusal, problem_of
from cellar_executor.idempotency import Key, Operation
from cellar_executor.ids import Ref
from cellar_executor.service import Service

AT_ONCE = 64
"""Operations of one batch; each that waits for a cell counts."""
MAX_REPLY_BYTES = 32 << 20
"""When the answers have so many, no more operations are begun: what is not begun can be sent again."""

log = logging.getLogger(__name__)


def batch(service: Service, tenant: str, body: BatchRequest, key: str | None) -> Operation:
    """The batch as an operation: what it did is kept by the operations in it."""

    async def work(_: object) -> BatchReply:
        return BatchReply(results=await _Batch(service, tenant, key).results(body.operations))

    return Operation(work, body, keep_answer=False)


class _Batch:
    def __init__(self, service: Service, tenant: str, key: str | None) -> None:
        self._service = service
        self._tenant = tenant
        self._key = key
        self._room = asyncio.Semaphore(AT_ONCE)
        self._reply_bytes = 0

    async def results(self, parts: Sequence[BatchOperation]) -> list[BatchResult]:
        lanes: dict[str | int, list[int]] = {}
        for position, part in enumerate(parts):
            lanes.setdefault(_session_id(part) or position, []).append(position)
        results: dict[int, BatchResult] = {}

        async def run_lane(positions: list[int]) -> None:
            for position in positions:
                results[position] = await self._result(position, parts[position])

        await asyncio.gather(*(run_lane(positions) for positions in lanes.values()))
        return [results[position] for position in range(len(parts))]

    async def _result(self, position: int, part: BatchOperation) -> BatchResult:
        # A run is kept here too: a later operation of the same batch may delete the session that has its record.
        operation = replace(self._operation(part), keep_answer=True)
        try:
            async with self._room:
                if self._reply_bytes > MAX_REPLY_BYTES:
                    raise Refusal("reply_too_large", "the operation was not begun; send it again in another batch")
                answer = await self._service.idempotency.answer(operation, self._key_of(position, part))
        except Refusal as refusal:
            return _refused(refusal)
        except Exception:
            log.exception("an operation of a batch failed")
            return _refused(Refusal("internal_error"))
        self._reply_bytes += len(answer.body)
        return BatchResult(status=answer.status, body=from_json(answer.body) if answer.body else None)

    def _operation(self, part: BatchOperation) -> Operation:
        match part:
            case BatchCreate():
                return operations.create(self._service, self._tenant, part)
            case BatchQueue():
                return operations.queue(self._service, Ref(self._tenant, part.session_id), part)
            case BatchRun():
                return operations.run(self._service, Ref(self._tenant, part.session_id), part)
            case BatchDelete():
                return operations.delete(self._service, Ref(self._tenant, part.session_id))
            case BatchExecute():
                return operations.execute(self._service, part)

    def _key_of(self, position: int, part: BatchOperation) -> Key | None:
        if self._key is None:
            return None
        return Key(self._tenant, f"{self._key} {position}", f"batch\n{part.model_dump_json()}")


def _session_id(part: BatchOperation) -> str | None:
    return None if isinstance(part, BatchExecute) else part.session_id


def _refused(refusal: Refusal) -> BatchResult:
    problem = problem_of(refusal)
    return BatchResult(status=problem.status, body=problem.model_dump(mode="json"))

"""What the routes that make or run something ask for, as values: the same for a POST of its own and within a batch."""

from cellar_client.schemas import CreateSession, ExecuteRequest, ForkRequest, QueueCells, RunRequest
from cellar_executor.events import RunEvents
from cellar_executor.idempotency import Operation
from cellar_executor.ids import Ref
from cellar_executor.presence import Presence
from cellar_executor.service import Service


def create(service: Service, tenant: str, body: CreateSession) -> Operation:
    return Operation(lambda ids: service.create(tenant, body, ids), body, status=201)


def queue(service: Service, ref: Ref, body: QueueCells) -> Operation:
    return Operation(lambda ids: service.queue(ref, body, ids), body, status=201)


def run(
    service: Service,
    ref: Ref,
    body: RunRequest,
    presence: Presence | None = None,
    events: RunEvents | None = None,
) -> Operation:
    return Operation(lambda ids: service.run(ref, body, ids, presence, events), body, keep_answer=False)


def enqueue_run(service: Service, ref: Ref, body: RunRequest) -> Operation:
    return Operation(lambda ids: service.enqueue_run(ref, body, ids), body, status=202, keep_answer=False)


def execute(service: Service, tenant: str, body: ExecuteRequest, presence: Presence | None = None) -> Operation:
    return Operation(lambda ids: service.execute(tenant, body, ids, presence), body, refused_left_nothing=True)


def fork(service: Service, ref: Ref, body: ForkRequest) -> Operation:
    return Operation(lambda ids: service.fork(ref, body, ids), body, status=201)


def interrupt(service: Service, ref: Ref) -> Operation:
    return Operation(lambda _: service.interrupt(ref), status=202)


def reset(service: Service, ref: Ref) -> Operation:
    return Operation(lambda _: service.reset(ref))


def delete(service: Service, ref: Ref) -> Operation:
    return Operation(lambda _: service.delete(ref), status=204)

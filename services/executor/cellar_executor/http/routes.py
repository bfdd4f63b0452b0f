"""HTTP v1: each route reads what came, calls one use case and writes what it returns."""

from typing import Annotated, TypeVar

from fastapi import APIRouter, Header, Query, Response

from cellar_client.schemas import (
    BatchReply,
    BatchRequest,
    Cell,
    Cells,
    CreateSession,
    ExecuteRequest,
    ForkRequest,
    Identifier,
    Info,
    QueueCells,
    Run,
    RunAccepted,
    RunRequest,
    Session,
    SessionPage,
    Sessions,
)
from cellar_executor.events import RunEvents
from cellar_executor.http import operations, preferences
from cellar_executor.http.batch import POSITIONS, batch
from cellar_executor.http.calls import Caller, Id, StrictRoute, TheService, reply
from cellar_executor.http.direct import DirectRoute
from cellar_executor.http.openapi import KERNEL, ONCE, SESSION, START, refusals

T = TypeVar("T")


every_cell = APIRouter(prefix="/v1", route_class=DirectRoute)
v1 = APIRouter(prefix="/v1", route_class=StrictRoute)


@every_cell.post(
    "/sessions/{session_id}/run",
    response_model=Run,
    responses={
        **refusals(*ONCE, *SESSION, *KERNEL, "too_many_cells", "quota_exceeded", "not_repeatable"),
        **preferences.RESPONSES,
    },
    openapi_extra={"parameters": preferences.PARAMETERS},
)
async def run(call: Caller, session_id: Id, body: RunRequest = RunRequest()) -> Response:  # noqa: B008  # immutable
    form, ref = call.reply_form, call.ref(session_id)
    if form == "later":
        return _later(session_id, await call.once(operations.enqueue_run(call.service, ref, body)))
    presence = call.presence(named=body.cell_id is not None)
    if form == "stream":
        events = RunEvents()
        return await call.streamed(operations.run(call.service, ref, body, presence, events), events, presence)
    return await call.once(operations.run(call.service, ref, body, presence), presence=presence)


def _later(session_id: str, accepted: Response) -> Response:
    run_id = RunAccepted.model_validate_json(bytes(accepted.body)).run_id
    accepted.headers["Location"] = f"/v1/sessions/{session_id}/runs/{run_id}"
    accepted.headers["Preference-Applied"] = preferences.RESPOND_ASYNC
    return accepted


@v1.post("/sessions", status_code=201, response_model=Session, responses=refusals(*ONCE, *START, "session_exists"))
async def create_session(call: Caller, body: CreateSession = CreateSession()) -> Response:  # noqa: B008  # immutable
    return await call.once(operations.create(call.service, call.tenant, body))


@v1.get("/sessions", response_model=SessionPage, responses=refusals())
async def list_sessions(
    call: Caller, cursor: Identifier | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Response:
    return reply(await call.service.list(call.tenant, cursor, limit))


@v1.get("/sessions/{session_id}", response_model=Session, responses=refusals(*SESSION))
async def get_session(call: Caller, session_id: Id) -> Response:
    return reply(await call.service.get(call.ref(session_id)))


@v1.delete("/sessions/{session_id}", status_code=204, responses=refusals(*SESSION))
async def delete_session(call: Caller, session_id: Id) -> Response:
    await call.service.delete(call.ref(session_id))
    return Response(status_code=204)


@every_cell.post(
    "/sessions/{session_id}/cells",
    status_code=201,
    response_model=Cells,
    responses=refusals(*ONCE, *SESSION, "session_lost", "too_many_cells", "quota_exceeded"),
)
async def queue_cells(call: Caller, session_id: Id, body: QueueCells) -> Response:
    return await call.once(operations.queue(call.service, call.ref(session_id), body))


@v1.get("/sessions/{session_id}/cells", response_model=Cells, responses=refusals(*SESSION))
async def list_cells(
    call: Caller,
    session_id: Id,
    after: Annotated[int, Query(ge=0)] | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] | None = None,
) -> Response:
    return reply(await call.service.cells(call.ref(session_id), after, limit))


@v1.get("/sessions/{session_id}/cells/{cell_id}", response_model=Cell, responses=refusals(*SESSION, "cell_not_found"))
async def get_cell(call: Caller, session_id: Id, cell_id: Id) -> Response:
    return reply(await call.service.cell(call.ref(session_id), cell_id))


@v1.delete(
    "/sessions/{session_id}/cells/{cell_id}",
    response_model=Cell,
    responses=refusals(*SESSION, "session_lost", "cell_not_found", "cell_not_pending"),
)
async def withdraw_cell(call: Caller, session_id: Id, cell_id: Id) -> Response:
    return reply(await call.service.withdraw(call.ref(session_id), cell_id))


@v1.get(
    "/sessions/{session_id}/runs/{run_id}",
    response_model=Run,
    responses={
        **refusals(*SESSION, *KERNEL, "run_not_found", "too_many_cells", "quota_exceeded", "not_repeatable"),
        202: {"model": RunAccepted},
    },
)
async def get_run(
    call: Caller, session_id: Id, run_id: Id, wait_s: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False)] = 0
) -> Response:
    """The run; 202 while it goes on, after `wait_s` at most.

    A run that is answered later may be refused in its turn: then this says so, and asking again tries again.
    """
    found = await call.service.find_run(call.ref(session_id), run_id, wait_s)
    return reply(RunAccepted(run_id=run_id), 202) if found is None else reply(found)


@v1.post(
    "/sessions/{session_id}/interrupt",
    status_code=202,
    response_class=Response,
    responses=refusals(*ONCE, *SESSION, "session_lost"),
)
async def interrupt(call: Caller, session_id: Id) -> Response:
    return await call.once(operations.interrupt(call.service, call.ref(session_id)))


@v1.post("/sessions/{session_id}/reset", response_model=Session, responses=refusals(*ONCE, *SESSION, *START))
async def reset(call: Caller, session_id: Id) -> Response:
    return await call.once(operations.reset(call.service, call.ref(session_id)))


@v1.post(
    "/sessions/{session_id}/fork",
    status_code=201,
    response_model=Sessions,
    responses=refusals(*ONCE, *SESSION, *KERNEL, *START, "session_exists", "not_repeatable"),
)
async def fork(call: Caller, session_id: Id, body: ForkRequest = ForkRequest()) -> Response:  # noqa: B008  # immutable
    return await call.once(operations.fork(call.service, call.ref(session_id), body))


@v1.post("/execute", response_model=Run, responses=refusals(*ONCE, *START, "invalid_path"))
async def execute(call: Caller, body: ExecuteRequest) -> Response:
    presence = call.presence()
    return await call.once(operations.execute(call.service, call.tenant, body, presence), presence=presence)


@v1.post("/batch", response_model=BatchReply, responses=refusals(*ONCE))
async def run_batch(
    call: Caller,
    body: BatchRequest,
    positions: Annotated[str | None, Header(alias=POSITIONS, include_in_schema=False)] = None,
) -> Response:
    return await call.once(batch(call.service, call.sender, body, positions), part=positions is not None)


@v1.get("/info", response_model=Info, responses=refusals())
async def info(service: TheService) -> Response:
    return reply(service.status.info())

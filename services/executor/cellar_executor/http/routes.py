"""HTTP v1: each route reads what came, calls one use case and writes what it returns."""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json

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
from cellar_executor.errors import Refusal, invalid_field
from cellar_executor.events import RunEvents
from cellar_executor.http import operations, preferences
from cellar_executor.http.batch import POSITIONS, Sender, batch
from cellar_executor.http.openapi import KERNEL, ONCE, SESSION, START, refusals
from cellar_executor.http.preferences import ReplyForm
from cellar_executor.http.streams import RunStream, begun
from cellar_executor.idempotency import Answer, Key, Operation, render
from cellar_executor.ids import Ref
from cellar_executor.presence import Presence, attended
from cellar_executor.service import Service

T = TypeVar("T")


class StrictRequest(Request):
    """Bodies are JSON as the standard has it: no NaN, no lone surrogates, no bottomless nesting."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # a wider return
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            request = StrictRequest(request.scope, request.receive)
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json" and await request.body():
                raise invalid_field("Content-Type", "bodies are application/json")
            return await handler(request)

        return strict


class Call:
    """The caller, and the service that answers."""

    def __init__(self, request: Request, idempotency_key: str | None) -> None:
        self._request = request
        self.key = idempotency_key
        self.tenant: str = request.state.tenant
        self.service: Service = request.app.state.service

    def ref(self, session_id: str) -> Ref:
        return Ref(self.tenant, session_id)

    def refuse_if_draining(self) -> None:
        if self.service.draining:
            raise Refusal("shutting_down")

    @property
    def sender(self) -> Sender:
        return Sender(self.tenant, self.key, self._request.headers.raw, self._request.app.state.peers)

    @property
    def reply_form(self) -> ReplyForm:
        """Raises `invalid_request`."""
        return preferences.reply_form(self._request)

    def presence(self, *, named: bool = False) -> Presence | None:
        """Of the client, where nobody can ask for the answer again: it has no key, and what it asks is not `named`."""
        return None if named or self.key is not None else Presence()

    async def once(self, operation: Operation, *, part: bool = False, presence: Presence | None = None) -> Response:
        """The answer to a POST: at most once for its idempotency key, if it has one.

        With `part` the key is that of a larger request, which has claimed it. `presence` hears if the client leaves.
        """
        self.refuse_if_draining()
        answer = await self._attended(self._answer(operation, part=part), presence)
        headers = {"Idempotency-Replayed": "true"} if answer.replayed else None
        return Response(answer.body, answer.status, headers, "application/json" if answer.body else None)

    async def streamed(self, operation: Operation, events: RunEvents, presence: Presence | None) -> Response:
        """`once` for a run, with its `events` as they come. Raises what it is refused with before the first of them."""
        self.refuse_if_draining()
        run = self.service.background.start(self._answer(operation))
        await self._attended(begun(run, events), presence)
        return RunStream(run, events, presence)

    async def _answer(self, operation: Operation, *, part: bool = False) -> Answer:
        request = f"{self._request.method} {self._request.url.path}\n{render(operation.body)}"
        key = None if self.key is None or part else Key(self.tenant, self.key, request)
        return await self.service.idempotency.answer(operation, key)

    async def _attended(self, work: Awaitable[T], presence: Presence | None) -> T:
        return await (work if presence is None else attended(work, self._request.receive, presence))


def _reply(body: BaseModel, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, media_type="application/json")


# Coroutines, though they wait for nothing: FastAPI would send plain functions through a thread, at every request.


async def _call(
    request: Request,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255, pattern=r"^[!-~]+$")] = None,
) -> Call:
    return Call(request, idempotency_key)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Caller = Annotated[Call, Depends(_call)]
TheService = Annotated[Service, Depends(_service)]
Id = Annotated[Identifier, Path()]

v1 = APIRouter(prefix="/v1", route_class=StrictRoute)


# Routes are tried in this order: the one of every cell comes first.


@v1.post(
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
    return _reply(await call.service.list(call.tenant, cursor, limit))


@v1.get("/sessions/{session_id}", response_model=Session, responses=refusals(*SESSION))
async def get_session(call: Caller, session_id: Id) -> Response:
    return _reply(await call.service.get(call.ref(session_id)))


@v1.delete("/sessions/{session_id}", status_code=204, responses=refusals(*SESSION))
async def delete_session(call: Caller, session_id: Id) -> Response:
    await call.service.delete(call.ref(session_id))
    return Response(status_code=204)


@v1.post(
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
    return _reply(await call.service.cells(call.ref(session_id), after, limit))


@v1.get("/sessions/{session_id}/cells/{cell_id}", response_model=Cell, responses=refusals(*SESSION, "cell_not_found"))
async def get_cell(call: Caller, session_id: Id, cell_id: Id) -> Response:
    return _reply(await call.service.cell(call.ref(session_id), cell_id))


@v1.delete(
    "/sessions/{session_id}/cells/{cell_id}",
    response_model=Cell,
    responses=refusals(*SESSION, "session_lost", "cell_not_found", "cell_not_pending"),
)
async def withdraw_cell(call: Caller, session_id: Id, cell_id: Id) -> Response:
    return _reply(await call.service.withdraw(call.ref(session_id), cell_id))


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
    return _reply(RunAccepted(run_id=run_id), 202) if found is None else _reply(found)


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
    return _reply(service.status.info())

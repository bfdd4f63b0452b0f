"""HTTP v1: each route reads what came, calls one use case and writes what it returns."""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

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
    Health,
    Identifier,
    Info,
    Problem,
    QueueCells,
    Readiness,
    Run,
    RunAccepted,
    RunRequest,
    Session,
    SessionPage,
    Sessions,
)
from cellar_executor import operations
from cellar_executor.batch import batch
from cellar_executor.errors import Refusal, invalid_field
from cellar_executor.idempotency import Key, Operation, render
from cellar_executor.ids import Ref
from cellar_executor.service import Service


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

    async def once(self, operation: Operation) -> Response:
        """The answer to a POST: at most once for its idempotency key, if it has one."""
        self.refuse_if_draining()
        request = f"{self._request.method} {self._request.url.path}\n{render(operation.body)}"
        key = None if self.key is None else Key(self.tenant, self.key, request)
        answer = await self.service.idempotency.answer(operation, key)
        headers = {"Idempotency-Replayed": "true"} if answer.replayed else None
        return Response(answer.body, answer.status, headers, "application/json" if answer.body else None)


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

REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": "Refused: `application/problem+json`"} for code in ("default", 422)
}

v1 = APIRouter(prefix="/v1", route_class=StrictRoute, responses=REFUSALS)
about = APIRouter()


# Routes are tried in this order: the one of every cell comes first.


@v1.post("/sessions/{session_id}/run", response_model=Run)
async def run(call: Caller, session_id: Id, body: RunRequest = RunRequest()) -> Response:  # noqa: B008  # immutable
    return await call.once(operations.run(call.service, call.ref(session_id), body))


@v1.post("/sessions", status_code=201, response_model=Session)
async def create_session(call: Caller, body: CreateSession = CreateSession()) -> Response:  # noqa: B008  # immutable
    return await call.once(operations.create(call.service, call.tenant, body))


@v1.get("/sessions", response_model=SessionPage)
async def list_sessions(
    call: Caller, cursor: Identifier | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Response:
    return _reply(await call.service.list(call.tenant, cursor, limit))


@v1.get("/sessions/{session_id}", response_model=Session)
async def get_session(call: Caller, session_id: Id) -> Response:
    return _reply(await call.service.get(call.ref(session_id)))


@v1.delete("/sessions/{session_id}", status_code=204)
async def delete_session(call: Caller, session_id: Id) -> Response:
    await call.service.delete(call.ref(session_id))
    return Response(status_code=204)


@v1.post("/sessions/{session_id}/cells", status_code=201, response_model=Cells)
async def queue_cells(call: Caller, session_id: Id, body: QueueCells) -> Response:
    return await call.once(operations.queue(call.service, call.ref(session_id), body))


@v1.get("/sessions/{session_id}/cells", response_model=Cells)
async def list_cells(call: Caller, session_id: Id) -> Response:
    return _reply(await call.service.cells(call.ref(session_id)))


@v1.get("/sessions/{session_id}/cells/{cell_id}", response_model=Cell)
async def get_cell(call: Caller, session_id: Id, cell_id: Id) -> Response:
    return _reply(await call.service.cell(call.ref(session_id), cell_id))


@v1.delete("/sessions/{session_id}/cells/{cell_id}", response_model=Cell)
async def withdraw_cell(call: Caller, session_id: Id, cell_id: Id) -> Response:
    return _reply(await call.service.withdraw(call.ref(session_id), cell_id))


@v1.get("/sessions/{session_id}/runs/{run_id}", response_model=Run, responses={202: {"model": RunAccepted}})
async def get_run(call: Caller, session_id: Id, run_id: Id) -> Response:
    found = await call.service.earlier_run(call.ref(session_id), run_id)
    return _reply(RunAccepted(run_id=run_id), 202) if found is None else _reply(found)


@v1.post("/sessions/{session_id}/interrupt", status_code=202)
async def interrupt(call: Caller, session_id: Id) -> Response:
    return await call.once(operations.interrupt(call.service, call.ref(session_id)))


@v1.post("/sessions/{session_id}/reset", response_model=Session)
async def reset(call: Caller, session_id: Id) -> Response:
    return await call.once(operations.reset(call.service, call.ref(session_id)))


@v1.post("/sessions/{session_id}/fork", status_code=201, response_model=Sessions)
async def fork(call: Caller, session_id: Id, body: ForkRequest = ForkRequest()) -> Response:  # noqa: B008  # immutable
    return await call.once(operations.fork(call.service, call.ref(session_id), body))


@v1.post("/execute", response_model=Run)
async def execute(call: Caller, body: ExecuteRequest) -> Response:
    return await call.once(operations.execute(call.service, body))


@v1.post("/batch", response_model=BatchReply)
async def run_batch(call: Caller, body: BatchRequest) -> Response:
    return await call.once(batch(call.service, call.tenant, body, call.key))


@v1.get("/info", response_model=Info)
async def info(service: TheService) -> Response:
    return _reply(service.info())


@about.get("/healthz", response_model=Health)
async def healthz(service: TheService) -> Response:
    return _reply(service.health())


@about.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(service: TheService) -> Response:
    readiness = await service.readiness()
    return _reply(readiness, 200 if readiness.status == "ready" else 503)

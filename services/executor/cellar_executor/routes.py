"""HTTP v1: each route reads what came, calls one use case and writes what it returns."""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json

from cellar_client.schemas import (
    Cell,
    Cells,
    CreateSession,
    ExecuteRequest,
    Health,
    Identifier,
    Info,
    QueueCells,
    Readiness,
    Run,
    RunAccepted,
    RunRequest,
    Session,
    SessionPage,
)
from cellar_executor.errors import Refusal, invalid_field
from cellar_executor.idempotency import Answer, Once, Work, render
from cellar_executor.ids import Ids, Ref
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

    def __init__(
        self,
        request: Request,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255, pattern=r"^[!-~]+$")] = None,
    ) -> None:
        self._request = request
        self._key = idempotency_key
        self.tenant: str = request.state.tenant
        self.service: Service = request.app.state.service

    def ref(self, session_id: str) -> Ref:
        return Ref(self.tenant, session_id)

    async def once(
        self,
        work: Work,
        body: BaseModel | None = None,
        *,
        status: int = 200,
        keep_answer: bool = True,
        refused_left_nothing: bool = False,
    ) -> Response:
        """The answer to a POST: at most once for its idempotency key, if it has one."""
        if self.service.draining:
            raise Refusal("shutting_down")
        if self._key is None:
            return _response(Answer(status, render(await self.service.background.finish(work(Ids.fresh())))))
        request = f"{self._request.method} {self._request.url.path}\n{render(body)}"
        once = Once(self.tenant, self._key, request, status, keep_answer, refused_left_nothing)
        return _response(await self.service.idempotency.answer(once, work))


def _response(answer: Answer) -> Response:
    headers = {"Idempotency-Replayed": "true"} if answer.replayed else None
    return Response(answer.body, answer.status, headers, "application/json" if answer.body else None)


def _reply(body: BaseModel, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, media_type="application/json")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Caller = Annotated[Call, Depends()]
TheService = Annotated[Service, Depends(_service)]
Id = Annotated[Identifier, Path()]

v1 = APIRouter(prefix="/v1", route_class=StrictRoute)
about = APIRouter()


@v1.post("/sessions", status_code=201, response_model=Session)
async def create_session(call: Caller, body: CreateSession = CreateSession()) -> Response:  # noqa: B008  # immutable
    return await call.once(lambda ids: call.service.create(call.tenant, body, ids), body, status=201)


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
    return await call.once(lambda ids: call.service.queue(call.ref(session_id), body, ids), body, status=201)


@v1.get("/sessions/{session_id}/cells", response_model=Cells)
async def list_cells(call: Caller, session_id: Id) -> Response:
    return _reply(await call.service.cells(call.ref(session_id)))


@v1.get("/sessions/{session_id}/cells/{cell_id}", response_model=Cell)
async def get_cell(call: Caller, session_id: Id, cell_id: Id) -> Response:
    return _reply(await call.service.cell(call.ref(session_id), cell_id))


@v1.delete("/sessions/{session_id}/cells/{cell_id}", response_model=Cell)
async def withdraw_cell(call: Caller, session_id: Id, cell_id: Id) -> Response:
    return _reply(await call.service.withdraw(call.ref(session_id), cell_id))


@v1.post("/sessions/{session_id}/run", response_model=Run)
async def run(call: Caller, session_id: Id, body: RunRequest = RunRequest()) -> Response:  # noqa: B008  # immutable
    return await call.once(lambda ids: call.service.run(call.ref(session_id), body, ids), body, keep_answer=False)


@v1.get("/sessions/{session_id}/runs/{run_id}", response_model=Run, responses={202: {"model": RunAccepted}})
async def get_run(call: Caller, session_id: Id, run_id: Id) -> Response:
    found = await call.service.earlier_run(call.ref(session_id), run_id)
    return _reply(RunAccepted(run_id=run_id), 202) if found is None else _reply(found)


@v1.post("/sessions/{session_id}/interrupt", status_code=202)
async def interrupt(call: Caller, session_id: Id) -> Response:
    return await call.once(lambda _: call.service.interrupt(call.ref(session_id)), status=202)


@v1.post("/sessions/{session_id}/reset", response_model=Session)
async def reset(call: Caller, session_id: Id) -> Response:
    return await call.once(lambda _: call.service.reset(call.ref(session_id)))


@v1.post("/execute", response_model=Run)
async def execute(call: Caller, body: ExecuteRequest) -> Response:
    return await call.once(lambda ids: call.service.execute(body, ids), body, refused_left_nothing=True)


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

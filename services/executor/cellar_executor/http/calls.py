"""A request as a route sees it: strictly JSON, with its caller, its key and its client's presence."""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Path, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, StringConstraints
from pydantic_core import from_json

from cellar_client.schemas import Identifier
from cellar_executor.errors import Refusal, invalid_field
from cellar_executor.events import RunEvents
from cellar_executor.http import preferences
from cellar_executor.http.batch import Sender
from cellar_executor.http.preferences import ReplyForm
from cellar_executor.http.streams import RunStream, begun
from cellar_executor.idempotency import Answer, Key, Operation, render
from cellar_executor.ids import Ref
from cellar_executor.presence import Presence, attended
from cellar_executor.service import Service

T = TypeVar("T")

IDEMPOTENCY_KEY = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[!-~]+$")]


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
            await insist_on_json(request)
            return await handler(request)

        return strict


async def insist_on_json(request: Request) -> bytes:
    """The body. Raises `invalid_request` when it says that it is something else."""
    content = await request.body()
    if content and request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise invalid_field("Content-Type", "bodies are application/json")
    return content


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


def reply(body: BaseModel, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, media_type="application/json")


# Coroutines, though they wait for nothing: FastAPI would send plain functions through a thread, at every request.


async def _call(
    request: Request,
    idempotency_key: Annotated[IDEMPOTENCY_KEY | None, Header()] = None,
) -> Call:
    return Call(request, idempotency_key)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Caller = Annotated[Call, Depends(_call)]
TheService = Annotated[Service, Depends(_service)]
Id = Annotated[Identifier, Path()]

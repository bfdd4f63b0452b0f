"""Routes on the way of every cell, which read their requests themselves.

FastAPI's own reading (dependencies, parameters, exit stacks) takes a fifth of the server's time for a cell (see
benchmarks/RESULTS.md). What it is told about such a route, by the signature of its function, is what it documents; what
is refused, and in which words, is the same.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from cellar_client.schemas import Identifier
from cellar_executor.http.calls import IDEMPOTENCY_KEY, Call, StrictRoute, insist_on_json

_SESSION_ID: TypeAdapter[str] = TypeAdapter(Identifier)
_KEY: TypeAdapter[str] = TypeAdapter(IDEMPOTENCY_KEY)


class DirectRoute(StrictRoute):
    """For a function of `call`, `session_id` and `body`."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # a wider return
        endpoint = self.endpoint
        parameter = inspect.signature(endpoint).parameters["body"]
        model: TypeAdapter[Any] = TypeAdapter(parameter.annotation)

        async def direct(request: Request) -> Response:
            content = await insist_on_json(request)
            reader = _Reader()
            given = parameter.default if not content else _json(content)
            key = request.headers.get("idempotency-key")
            if key is not None:
                reader.read(_KEY, key, "header", "idempotency-key")
            session_id = reader.read(_SESSION_ID, request.path_params["session_id"], "path", "session_id")
            body = given if given is parameter.default else reader.read(model, given, "body")
            if body is inspect.Parameter.empty:
                reader.problems.append({"type": "missing", "loc": ("body",), "msg": "Field required"})
            if reader.problems:
                raise RequestValidationError(reader.problems)
            reply: Response = await endpoint(Call(request, key), session_id, body)
            return reply

        return direct


class _Reader:
    """Reads all, and remembers what is wrong with it."""

    def __init__(self) -> None:
        self.problems: list[dict[str, Any]] = []

    def read(self, model: TypeAdapter[Any], given: object, *place: str) -> Any:
        try:
            return model.validate_python(given, from_attributes=True)
        except ValidationError as error:
            self.problems += [{**problem, "loc": (*place, *problem["loc"])} for problem in error.errors()]
            return None


def _json(content: bytes) -> object:
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        problem = {"type": "json_invalid", "loc": ("body",), "msg": "not JSON", "ctx": {"error": str(error)}}
        raise RequestValidationError([problem]) from None

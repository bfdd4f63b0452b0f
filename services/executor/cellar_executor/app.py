"""The ASGI application: routes behind the gate, and every error as `application/problem+json`."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from cellar_client.schemas import FieldProblem
from cellar_executor import __version__
from cellar_executor.errors import Refusal, respond
from cellar_executor.file_routes import files
from cellar_executor.gate import Gate
from cellar_executor.routes import about, v1
from cellar_executor.service import Service

MAX_FIELD_CHARS = 100

log = logging.getLogger(__name__)


def create_app(service: Service, *, api_keys: Mapping[str, str], max_body_bytes: int) -> FastAPI:
    """The application. `api_keys` (key -> tenant) empty means: one tenant, no key asked."""
    app = FastAPI(title="Cellar executor", version=__version__, redirect_slashes=False)
    app.state.service = service
    app.include_router(v1)
    app.include_router(files)
    app.include_router(about)
    app.add_middleware(Gate, api_keys=api_keys, max_body_bytes=max_body_bytes)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    return app


async def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return respond(refusal)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        return respond(Refusal("invalid_json", str(problems[0]["ctx"]["error"])))
    # Field and message only: what came may be secret, and may be such (NaN) that it cannot be rendered again.
    return respond(Refusal("invalid_request", errors=[_field_problem(p["loc"], p["msg"]) for p in problems]))


def _field_problem(loc: Sequence[Any], message: str) -> FieldProblem:
    path = ".".join(str(part) for part in (loc[1:] or loc))
    return FieldProblem(field=path[:MAX_FIELD_CHARS], message=message)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            return respond(Refusal("not_found"))
        case 405:
            return respond(Refusal("method_not_allowed"), error.headers)
        case _:
            return respond(Refusal("invalid_request", str(error.detail)))


async def _failed(_: Request, error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    return respond(Refusal("internal_error"))

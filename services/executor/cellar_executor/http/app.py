"""The ASGI application: routes behind the gate, and every error as `application/problem+json`."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from cellar_client.schemas import FieldProblem
from cellar_executor import __version__
from cellar_executor.errors import Refusal
from cellar_executor.http.about_routes import about
from cellar_executor.http.file_routes import files
from cellar_executor.http.forward import Forward
from cellar_executor.http.gate import Gate
from cellar_executor.http.observed import HEADER, Observed
from cellar_executor.http.openapi import document
from cellar_executor.http.peers import Peers
from cellar_executor.http.problems import respond
from cellar_executor.http.routes import every_cell, v1
from cellar_executor.service import Service
from cellar_executor.telemetry import logs

ROUTERS = (every_cell, v1, files, about)
"""In the order in which they are tried: what every cell needs comes first."""
MAX_FIELD_CHARS = 100

log = logging.getLogger(__name__)


def create_app(service: Service, *, max_body_bytes: int, peers: Peers | None = None) -> FastAPI:
    """The application; no `peers`: no other server."""
    app = FastAPI(title="Cellar executor", version=__version__, redirect_slashes=False)
    app.openapi = partial(document, app)  # type: ignore[method-assign]  # as FastAPI's own manual does
    app.state.service = service
    app.state.peers = peers
    for router in ROUTERS:
        app.include_router(router)
    if peers is not None:
        app.add_middleware(Forward, service=service, peers=peers)
    app.add_middleware(Gate, tenants=service.tenants, max_body_bytes=max_body_bytes)
    app.add_middleware(Observed)
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


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            return respond(Refusal("not_found"))
        case 405:
            return respond(Refusal("method_not_allowed"), {"Allow": ", ".join(sorted(_methods_of(request)))})
        case _:
            return respond(Refusal("invalid_request", str(error.detail)))


def _methods_of(request: Request) -> set[str]:
    """What the path can be asked for: Starlette itself names the methods of one of its routes only."""
    routes = (route for router in ROUTERS for route in router.routes if isinstance(route, Route))
    return {
        method for route in routes if route.matches(request.scope)[0] != Match.NONE for method in route.methods or ()
    }


async def _failed(_: Request, error: Exception) -> Response:
    log.error("request failed", exc_info=error)
    return respond(Refusal("internal_error"), {HEADER: logs.request_id() or ""})  # here no middleware adds it

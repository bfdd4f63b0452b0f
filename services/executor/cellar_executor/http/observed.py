"""Around every request: its id, its span, its line in the log, and its place in the metrics."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellar_executor.telemetry import logs, metrics, tracing

HEADER = "X-Request-Id"
RAW_HEADER = b"x-request-id"
NO_ROUTE, FORWARDED = "none", "forwarded"

log = logging.getLogger(__name__)


class Observed:
    """ASGI middleware, the outermost: what is refused before any route is seen as well."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = next((value for name, value in scope["headers"] if name == RAW_HEADER), None)
        request_id = logs.accepted_request_id(given)
        logs.bind(request_id=request_id)
        named = (RAW_HEADER, request_id.encode())
        status, started = 500, time.perf_counter()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*(pair for pair in message["headers"] if pair[0] != RAW_HEADER), named]
            await send(message)

        with tracing.request_span("HTTP", scope["headers"]) as span:
            # What another server gets, if it is to answer this request.
            onward = [named, *tracing.onward_headers()]
            replaced = {name for name, _ in onward}
            scope["headers"] = [*(pair for pair in scope["headers"] if pair[0] not in replaced), *onward]
            try:
                await self._app(scope, receive, send_named)
            finally:
                duration_s = time.perf_counter() - started
                route, method = _route(scope), scope["method"]
                metrics.request_ended(route, method, status, duration_s)
                if span is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attributes({"http.request.method": method, "http.route": route})
                    span.set_attribute("http.response.status_code", status)
                    span.set_attributes(_ids(scope))
                if log.isEnabledFor(logging.DEBUG):
                    what = {"method": method, "route": route, "status": status, "duration_s": round(duration_s, 6)}
                    log.debug("request answered", extra=what | _ids(scope))


def _route(scope: Scope) -> str:
    """The template of the path, never the path: that names sessions, and clients make it up."""
    if "forwarded" in scope.get("state", {}):
        return FORWARDED
    return getattr(scope.get("route"), "path", None) or NO_ROUTE


def _ids(scope: Scope) -> dict[str, str]:
    given = scope.get("path_params", {})
    return {name: given[name] for name in ("session_id", "cell_id", "run_id") if name in given}

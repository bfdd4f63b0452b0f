"""What the server says about itself: for probes, for Prometheus, and for whoever opens it in a browser."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from cellar_client.schemas import Health, Readiness
from cellar_executor.http.calls import TheService, reply
from cellar_executor.http.page import page_file
from cellar_executor.telemetry import metrics

about = APIRouter()


@about.get("/healthz", response_model=Health)
async def healthz(service: TheService) -> Response:
    return reply(service.status.health())


@about.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(service: TheService) -> Response:
    readiness = await service.status.readiness()
    return reply(readiness, 200 if readiness.status == "ready" else 503)


@about.get("/metrics", response_class=PlainTextResponse)
async def prometheus(service: TheService) -> Response:
    return Response(metrics.exposition(service.status), media_type=metrics.CONTENT_TYPE)


@about.get("/", include_in_schema=False)
async def page() -> Response:
    return page_file("index.html")


@about.get("/page.js", include_in_schema=False)
async def script() -> Response:
    return page_file("page.js")


@about.get("/page.css", include_in_schema=False)
async def style() -> Response:
    return page_file("page.css")

"""How a run's client wants its answer: at its end, as it happens, or later."""

from typing import Any, Literal

from fastapi import Request

from cellar_client.schemas import RunAccepted
from cellar_executor.errors import invalid_field

ReplyForm = Literal["whole", "stream", "later"]
RESPOND_ASYNC = "respond-async"

PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "stream",
        "in": "query",
        "schema": {"type": "boolean", "default": False},
        "description": "Server-sent events of the run: `run`, `cell_started`, `output`, `cell`, and `done` or `error`.",
    },
    {
        "name": "Prefer",
        "in": "header",
        "schema": {"type": "string"},
        "description": "`respond-async`: 202 once the run is durable; its result is at `Location`.",
    },
]
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["run", "cell_started", "output", "cell", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"itemSchema": EVENT}}},
    202: {"model": RunAccepted, "description": "With `Prefer: respond-async`"},
}
"""As OpenAPI describes them. They are read here and not by FastAPI, since most runs have neither."""


def reply_form(request: Request) -> ReplyForm:
    """Raises `invalid_request`."""
    stream = _flag(request, "stream")
    later = any(
        preference.strip().lower() == RESPOND_ASYNC
        for header in request.headers.getlist("prefer")
        for preference in header.split(",")
    )
    if stream and later:
        raise invalid_field("Prefer", "a run is streamed or answered later, not both")
    return "stream" if stream else "later" if later else "whole"


def _flag(request: Request, name: str) -> bool:
    if not request.scope["query_string"]:
        return False
    match request.query_params.get(name, "false"):
        case "true" | "1":
            return True
        case "false" | "0":
            return False
        case _:
            raise invalid_field(name, "true or false")

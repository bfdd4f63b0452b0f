"""HTTP v1, files of a session: bytes in and out, of any content type. Writing a file twice writes it once."""

from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from cellar_client.schemas import Files
from cellar_executor.errors import Refusal
from cellar_executor.http.calls import Caller, Id, reply
from cellar_executor.http.openapi import KERNEL, SESSION, refusals

BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
DOWNLOAD = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment", "Cache-Control": "no-store"}
"""Whatever a cell wrote, no browser is to show or run it."""


class AnyText(PathConvertor):
    """Starlette's own `path` ends at a line break, which a file's name may have."""

    regex = "(?s:.*)"


register_url_convertor("text", AnyText())

files = APIRouter(
    prefix="/v1/sessions/{session_id}/files",
    responses=refusals(*SESSION, *KERNEL, "file_not_found", "file_too_large", "invalid_path"),
)


async def _path(request: Request, path: str) -> str:
    """The path as it was sent, decoded once. Raises `invalid_path` for what is not UTF-8."""
    try:
        unquote_to_bytes(request.scope["raw_path"]).decode()
    except UnicodeDecodeError:
        raise Refusal("invalid_path", "not UTF-8") from None
    return path


FilePath = Annotated[str, Depends(_path)]


@files.get("", response_model=Files)
async def list_files(call: Caller, session_id: Id) -> Response:
    return reply(await call.service.files(call.ref(session_id)))


@files.get("/{path:text}", response_class=Response, responses={200: {"content": BYTES}})
async def get_file(call: Caller, session_id: Id, path: FilePath) -> Response:
    data = await call.service.get_file(call.ref(session_id), path)
    return Response(data, headers=DOWNLOAD, media_type="application/octet-stream")


@files.put("/{path:text}", status_code=204, openapi_extra={"requestBody": {"content": BYTES}})
async def put_file(call: Caller, session_id: Id, path: FilePath, request: Request) -> Response:
    call.refuse_if_draining()
    await call.service.put_file(call.ref(session_id), path, await request.body())
    return Response(status_code=204)


@files.delete("/{path:text}", status_code=204)
async def delete_file(call: Caller, session_id: Id, path: FilePath) -> Response:
    call.refuse_if_draining()
    await call.service.delete_file(call.ref(session_id), path)
    return Response(status_code=204)

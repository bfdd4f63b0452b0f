"""What supervisor and kernel say to each other, as JSON in frames. Replies are hostile input: parsed strictly.

A request has nonce and operation before its JSON, in a fixed place: so a kernel can answer one that it lacks the memory
to read.
"""

import base64
import json
import struct
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, ValidationError

from cellar_client.schemas import CellError
from cellar_executor.kernel import FileProblem

MAX_REPLY_BYTES = 1 << 20
"""Three texts of 64 Ki characters of at most four bytes (kernel_main.MAX_TEXT_CHARS), and escapes."""
FILE_CHUNK_BYTES = 128 << 10
"""Bytes of a file in one request or reply; a third more in base64. A kernel holds a few copies of them at a time."""
_REQUEST_HEAD = struct.Struct("!16s8s")
"""Nonce and operation, filled up with zeros."""

Explanation = Annotated[str, Field(max_length=4096)]
M = TypeVar("M", bound=BaseModel)


class ProtocolError(Exception):
    """The kernel died, or said something that it may not say."""


class _Frame(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, val_json_bytes="base64")


class Ready(_Frame):
    ready: Literal[True]


class Failed(_Frame):
    """Instead of `Ready`: why the process did not become a kernel."""

    failed: Explanation


class Started(RootModel[Ready | Failed]):
    """What a process says unasked, once."""


class Reply(_Frame):
    nonce: str


class CellReply(Reply):
    status: Literal["ok", "error"]
    result: str | None
    error: CellError | None
    leftovers: bool
    """Whether other processes may be left, which hold the pipes of this cell."""


class Done(Reply):
    problem: Explanation | None


class Problem(_Frame):
    kind: FileProblem
    message: Explanation


class FileReply(Reply):
    problem: Problem | None


class FileChunk(FileReply):
    size: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the whole file."""
    data: bytes = b""


def _plain(path: str) -> str:
    """A client may well write under this name: nothing that would lead it elsewhere."""
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("not a plain relative path")
    return path


class FileEntry(_Frame):
    path: Annotated[str, AfterValidator(_plain)]
    size: Annotated[int, Field(ge=0, lt=2**63)]


class FileListing(FileReply):
    files: list[FileEntry] = []
    truncated: bool = False


def parse(kind: type[M], answer: bytes | None) -> M:
    """Raises `ProtocolError`."""
    if answer is None:
        raise ProtocolError("the kernel died")
    try:
        return kind.model_validate_json(answer)
    except ValidationError as exc:
        raise ProtocolError("not a reply") from exc


def request(op: str, nonce: str, **arguments: Any) -> bytes:
    head = _REQUEST_HEAD.pack(nonce.encode(), op.encode())
    return head + json.dumps(arguments, ensure_ascii=False).encode("utf-8", "surrogatepass")


def encode_data(data: bytes) -> str:
    return base64.b64encode(data).decode()

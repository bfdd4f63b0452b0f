"""What supervisor and kernel say to each other, as JSON in frames. Replies are hostile input: parsed strictly."""

import base64
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, ValidationError

from cellar_client.schemas import CellError
from cellar_executor.kernel import FileProblem

MAX_REPLY_BYTES = 1 << 20
"""Three texts of 64 Ki characters of at most four bytes (kernel_main.MAX_TEXT_CHARS), and escapes."""
MAX_REQUEST_BYTES = 64 << 20
FILE_CHUNK_BYTES = 512 << 10
"""Bytes of a file in one reply: with a third more for base64 they stay below `MAX_REPLY_BYTES`."""

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
    return json.dumps({"op": op, "nonce": nonce, **arguments}).encode()


def encode_data(data: bytes) -> str:
    return base64.b64encode(data).decode()

"""What supervisor and kernel say to each other, as JSON in frames. Replies are hostile input: parsed strictly."""

import base64
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cellar_client.schemas import CellError

MAX_REPLY_BYTES = 1 << 20
"""Three texts of 64 Ki characters of at most four bytes (kernel_main.MAX_TEXT_CHARS), and escapes."""
MAX_REQUEST_BYTES = 64 << 20


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Ready(_Reply):
    ready: Literal[True]


class CellReply(_Reply):
    nonce: str
    status: Literal["ok", "error"]
    result: str | None
    error: CellError | None


class PutReply(_Reply):
    nonce: str
    problem: str | None


def run_request(nonce: str, code: str, stdin: str) -> bytes:
    return json.dumps({"op": "run", "nonce": nonce, "code": code, "stdin": stdin}).encode()


def put_request(nonce: str, path: str, data: bytes) -> bytes:
    return json.dumps({"op": "put", "nonce": nonce, "path": path, "data": base64.b64encode(data).decode()}).encode()

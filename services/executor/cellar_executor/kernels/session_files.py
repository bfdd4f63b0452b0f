"""Files of a session, asked for through its kernel: `kernel_files` answers from inside the jail."""

from typing import Any, Protocol, TypeVar

from cellar_client.schemas import FileInfo
from cellar_executor.kernel import KernelFileError
from cellar_executor.kernels.protocol import (
    FILE_CHUNK_BYTES,
    FileChunk,
    FileListing,
    FileReply,
    Reply,
    encode_data,
)

R = TypeVar("R", bound=Reply)


class Ask(Protocol):
    async def __call__(self, kind: type[R], op: str, **arguments: Any) -> R: ...


async def put_file(ask: Ask, path: str, data: bytes) -> None:
    """Piece by piece, as a session that holds nearly all its memory has little left to read one. The last makes it
    the file of this path; a piece that is refused ends it and leaves the old file."""
    for offset in range(0, len(data) or 1, FILE_CHUNK_BYTES):
        piece = data[offset : offset + FILE_CHUNK_BYTES]
        last = offset + len(piece) == len(data)
        refuse(await ask(FileReply, "put", path=path, offset=offset, data=encode_data(piece), last=last))


async def get_file(ask: Ask, path: str, max_bytes: int) -> bytes:
    """Chunk by chunk. A file that changes meanwhile may come torn, but never longer than `max_bytes`."""
    data = bytearray()
    while True:
        reply = await ask(FileChunk, "get", path=path, offset=len(data), length=FILE_CHUNK_BYTES, max_bytes=max_bytes)
        refuse(reply)
        data += reply.data
        if len(data) > max_bytes:
            raise KernelFileError("too_large", f"more than {max_bytes} bytes")
        if len(reply.data) < FILE_CHUNK_BYTES or len(data) >= reply.size:
            return bytes(data)


async def list_files(ask: Ask, max_files: int) -> tuple[list[FileInfo], bool]:
    reply = await ask(FileListing, "list", max_files=max_files)
    refuse(reply)
    files = [FileInfo(path=entry.path, size=entry.size) for entry in reply.files[:max_files]]
    return files, reply.truncated or len(reply.files) > max_files


async def delete_file(ask: Ask, path: str) -> None:
    refuse(await ask(FileReply, "delete", path=path))


def refuse(reply: FileReply) -> None:
    """Raises `KernelFileError` for what the kernel could not do."""
    if reply.problem is not None:
        raise KernelFileError(reply.problem.kind, reply.problem.message)

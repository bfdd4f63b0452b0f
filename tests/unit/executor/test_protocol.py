import json

import pytest

from cellar_executor.kernels.protocol import (
    FILE_CHUNK_BYTES,
    MAX_REPLY_BYTES,
    CellReply,
    FileChunk,
    FileListing,
    ProtocolError,
    Reply,
    encode_data,
    parse,
)

CELL = {"nonce": "n", "status": "ok", "result": None, "error": None, "leftovers": False}
CHUNK = {"nonce": "n", "problem": None, "size": 3, "data": "AAAA"}
LISTING = {"nonce": "n", "problem": None, "files": [{"path": "a/b", "size": 1}], "truncated": False}


@pytest.mark.parametrize(("kind", "reply"), [(CellReply, CELL), (FileChunk, CHUNK), (FileListing, LISTING)])
def test_what_a_kernel_says_is_parsed(kind: type[Reply], reply: dict[str, object]) -> None:
    assert parse(kind, json.dumps(reply).encode()).nonce == "n"


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        (CellReply, CELL | {"status": "timeout"}),
        (CellReply, CELL | {"result": 1}),
        (CellReply, CELL | {"leftovers": "yes"}),
        (CellReply, CELL | {"duration_s": 0.1}),
        (CellReply, {name: value for name, value in CELL.items() if name != "nonce"}),
        (CellReply, [CELL]),
        (FileChunk, CHUNK | {"data": "!!"}),
        (FileChunk, CHUNK | {"size": -1}),
        (FileChunk, CHUNK | {"size": 2**63}),
        (FileChunk, CHUNK | {"problem": {"kind": "else", "message": ""}}),
        *(
            (FileListing, LISTING | {"files": [{"path": path, "size": 1}]})
            for path in ("/a", "a/../b", "..", "", "a//b", "a/", "./a", "a\0b")
        ),
    ],
)
def test_what_a_kernel_may_not_say_is_refused(kind: type[Reply], reply: object) -> None:
    with pytest.raises(ProtocolError):
        parse(kind, json.dumps(reply).encode())


def test_a_chunk_of_a_file_fits_a_reply() -> None:
    whole = CHUNK | {"data": encode_data(bytes(FILE_CHUNK_BYTES))}
    assert len(json.dumps(whole)) < MAX_REPLY_BYTES

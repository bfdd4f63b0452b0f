"""Files of a session over HTTP: bytes in, the same bytes out, in their place among the cells."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.integration.conftest import StartExecutor
from tests.integration.executor.conftest import Session, connect

EVERY_BYTE = bytes(range(256)) * 64
MIB = 2**20


def put(session: Session, path: str, data: bytes, **headers: str) -> httpx.Response:
    return session.http.put(f"{session.path}/files/{path}", content=data, headers=headers)


def get(session: Session, path: str) -> httpx.Response:
    return session.http.get(f"{session.path}/files/{path}")


def assert_refused(reply: httpx.Response, status: int, code: str) -> None:
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text


def test_half_an_upload_changes_nothing(http: httpx.Client, session: Session) -> None:
    http.put(f"{session.path}/files/f", content=b"all of it").raise_for_status()
    for framing, half in (("Content-Length: 100", b"half"), ("Transfer-Encoding: chunked", b"4\r\nhalf\r\n")):
        with socket.create_connection((http.base_url.host, http.base_url.port)) as raw:
            head = f"PUT {session.path}/files/f HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
            raw.sendall(head.encode() + half)
    for _ in range(3):  # whatever the server makes of them comes before
        assert http.get(f"{session.path}/files/f").content == b"all of it"


def test_bytes_come_back_as_they_were_put_and_cells_see_them(session: Session) -> None:
    for _ in range(2):
        assert put(session, "d/data.bin", EVERY_BYTE, **{"Content-Type": "image/png"}).status_code == 204
    assert session.run("open('d/data.bin', 'rb').read() == bytes(range(256)) * 64")["result"] == "True"
    session.run("open('made', 'wb').write(b'\\x00\\xff')")
    reply = get(session, "made")
    assert (reply.status_code, reply.content) == (200, b"\x00\xff")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-disposition"] == "attachment"
    assert get(session, "d/data.bin").content == EVERY_BYTE


def test_an_empty_file_is_a_file(session: Session) -> None:
    assert put(session, "empty", b"").status_code == 204
    assert (get(session, "empty").status_code, get(session, "empty").content) == (200, b"")


def test_files_are_listed_and_deleted(session: Session) -> None:
    for path in ("b", "a/x", "ü %25.txt"):
        put(session, path, path.encode())
    listed = session.get("files")
    assert [file["path"] for file in listed["files"]] == ["a/x", "b", "ü %.txt"]
    assert (listed["files"][0]["size"], listed["truncated"]) == (3, False)
    assert session.http.delete(f"{session.path}/files/b").status_code == 204
    assert_refused(session.http.delete(f"{session.path}/files/b"), 404, "file_not_found")
    assert_refused(get(session, "b"), 404, "file_not_found")
    assert session.run("import os; os.path.exists('b')")["result"] == "False"


BAD_PATHS = {
    "empty": "",
    "absolute": "/etc/passwd",
    "absolute, encoded": "%2Fetc/passwd",
    "upwards": "%2e%2e/f",
    "upwards inside": "a/%2E%2e/%2e./f",
    "upwards, encoded": "a%2F..%2F..%2Ff",
    "the folder": "%2e",
    "a folder": "a/",
    "an empty name": "a//b",
    "NUL": "a%00b",
    "long": "a/" * 600 + "a",
    "a long name": "a" * 256,
    "no UTF-8": "a%ff",
}


@pytest.mark.parametrize("what", BAD_PATHS)
def test_a_path_that_is_none_is_refused(session: Session, what: str) -> None:
    for reply in (
        put(session, BAD_PATHS[what], b"1"),
        get(session, BAD_PATHS[what]),
        session.http.delete(f"{session.path}/files/{BAD_PATHS[what]}"),
    ):
        assert_refused(reply, 422, "invalid_path")
    assert session.get("files")["files"] == []


def test_a_path_is_decoded_once(session: Session) -> None:
    put(session, "%252e%252e", b"1")
    put(session, "..%5Cf", b"2")
    assert {file["path"] for file in session.get("files")["files"]} == {"%2e%2e", "..\\f"}


def test_a_name_may_have_line_breaks_and_blanks(session: Session) -> None:
    assert put(session, "a%20%0Ab%0A", b"1").status_code == 204
    assert get(session, "a%20%0Ab%0A").content == b"1"
    assert [file["path"] for file in session.get("files")["files"]] == ["a \nb\n"]


def test_links_lead_nowhere(session: Session) -> None:
    session.run("import os; os.symlink('/etc/passwd', 'out'); os.symlink('real', 'in'); open('real', 'w').write('1')")
    for path in ("out", "in"):
        assert get(session, path).json()["code"] in ("invalid_path", "file_not_found")


def test_no_session_no_files(http: httpx.Client) -> None:
    for reply in (http.get("/v1/sessions/none/files"), http.get("/v1/sessions/none/files/f")):
        assert_refused(reply, 404, "session_not_found")
    assert_refused(http.put("/v1/sessions/none/files/f", content=b"1"), 404, "session_not_found")


def test_files_wait_for_the_cell_that_runs(session: Session) -> None:
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(session.run, "import time, os; time.sleep(1); print(os.path.exists('f'))")
        session.wait_until_running()
        waiting = pool.submit(put, session, "f", b"1")
        time.sleep(0.3)
        assert not waiting.done()
        assert (waiting.result().status_code, slow.result()["stdout"]) == (204, "False\n")


def test_files_and_cells_are_played_again_in_their_order(start_executor: StartExecutor) -> None:
    executor = start_executor()
    with connect(executor) as http:
        session = Session(http, recovery="replay")
        session.queue("seen = [open('f').read()]")
        put(session, "f", b"1")
        session.run()
        put(session, "f", b"2")
        session.run("seen.append(open('f').read())")
        put(session, "g", EVERY_BYTE)
        session.http.delete(f"{session.path}/files/f")
        executor.kill()
        executor.start()
        http.base_url = httpx.URL(executor.url)
        assert get(session, "g").content == EVERY_BYTE
        run = session.run("import os; seen, os.listdir()")
        assert (run["result"], run["recovered"]) == ("(['1', '2'], ['g'])", True)


def test_a_lost_session_has_no_files(http: httpx.Client) -> None:
    session = Session(http)
    put(session, "f", b"1")
    session.run("import os; os._exit(1)")
    for reply in (put(session, "f", b"1"), get(session, "f"), session.http.get(f"{session.path}/files")):
        assert_refused(reply, 410, "session_lost")
    session.post("reset")
    assert session.get("files")["files"] == []
    http.delete(session.path)


def test_what_is_too_large_is_refused_and_nothing_is_lost(start_executor: StartExecutor) -> None:
    executor = start_executor("--max-body-mb", "1", "--max-log-mb", "2", "--disk-mb", "4")
    with connect(executor) as http:
        session = Session(http)
        assert_refused(put(session, "big", bytes(MIB + 1)), 413, "body_too_large")
        for name in "ab":
            assert put(session, name, bytes(MIB - 1000)).status_code == 204
        assert_refused(put(session, "c", bytes(MIB - 1000)), 429, "too_many_cells")
        assert [file["path"] for file in session.get("files")["files"]] == ["a", "b"]
        assert_refused(put(session, "a/below", b"1"), 422, "invalid_path")
        assert session.run("len(open('a').read())")["result"] == str(MIB - 1000)


def test_a_full_disk_is_said_so(start_executor: StartExecutor) -> None:
    executor = start_executor("--disk-mb", "2")
    with connect(executor) as http:
        session = Session(http)
        assert put(session, "kept", b"1").status_code == 204
        assert_refused(put(session, "big", bytes(3 * MIB)), 422, "invalid_path")
        assert get(session, "kept").content == b"1"

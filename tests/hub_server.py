"""A Hugging Face hub of one data set: the few routes that its client uses for listing and downloading files."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    url: str
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""


@contextmanager
def hub_of(repository: str, files: Mapping[str, bytes], *, revision: str = "main") -> Iterator[Hub]:
    """Serves `files` at `revision` of the data set `repository` ("org/name"); everything else is not found."""
    listing, file_start = f"/api/datasets/{repository}/tree/", f"/datasets/{repository}/resolve/"

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            start = next((start for start in (listing, file_start) if path.startswith(start)), None)
            if start is None:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif not f"{path[len(start) :]}/".startswith(f"{revision}/"):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif start == listing:
                rows = [{"type": "file", "path": n, "size": len(b), "oid": _etag(b)} for n, b in files.items()]
                self._send(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
            elif (body := files.get(path[len(start) + len(revision) + 1 :])) is not None:
                self._send(200, body, {"ETag": f'"{_etag(body)}"', "X-Repo-Commit": COMMIT})
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()

"""Cellar through HTTP, by a client that costs next to nothing."""

import json
import threading
import time
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from benchmarks.executor.system import descendants

IDLE_CONNECTION_S = 4.0
"""Less than the server waits before it closes an idle connection."""


class CellarSide:
    """Each thread has one connection."""

    def __init__(self, name: str, url: str, server_pid: int, *, isolation: str | None, key: str | None = None) -> None:
        self.name = name
        self.url = url
        self.server_pid = server_pid
        self.key = key
        self._connections = threading.local()
        self._asked = {} if isolation is None else {"isolation": isolation}
        self.starts_quickly = (isolation or self.tier()) == "warm"

    @property
    def http(self) -> "Http":
        try:
            http: Http = self._connections.http
        except AttributeError:
            http = self._connections.http = Http(self.url, self.key)
        return http

    def open(self) -> "CellarSession":
        return CellarSession(self, self.http.post("/v1/sessions", self._asked)["session_id"])

    def execute(self, code: str) -> None:
        finished(self.http.post("/v1/execute", {"code": code, **self._asked}))

    def batch(self, operations: list[dict[str, Any]]) -> None:
        """Raises when any of the operations failed."""
        creates = [{**o, **self._asked} if o["op"] == "create" else o for o in operations]
        for result in self.http.post("/v1/batch", {"operations": creates})["results"]:
            if result["status"] >= 300 or (result["body"] or {}).get("status", "ok") not in ("ok", "ready"):
                raise RuntimeError(result)

    def pids(self) -> list[int]:
        return descendants(self.server_pid)

    def tier(self) -> str:
        tier: str = self._info()["isolation"]["tier"]
        return tier

    def described(self) -> str:
        return ", ".join(f"{k} {v}" for k, v in self._info()["isolation"].items() if k != "namespaces")

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads(self.http.request("GET", "/v1/info"))
        return info


class CellarSession:
    def __init__(self, side: CellarSide, session_id: str) -> None:
        self._side = side
        self.session_id = session_id
        self._path = f"/v1/sessions/{session_id}"

    def run(self, code: str) -> str:
        stdout: str = self.outcome(code)["stdout"]
        return stdout

    def outcome(self, code: str) -> dict[str, Any]:
        return finished(self._side.http.post(f"{self._path}/run", {"code": code}))

    def run_from_now_on(self, code: str) -> None:
        """Start a cell and do not wait for it."""
        Http(self._side.url, self._side.key).begin("POST", f"{self._path}/run", json.dumps({"code": code}).encode())
        while json.loads(self._side.http.request("GET", self._path))["status"] != "running":
            time.sleep(0.01)

    def close(self) -> None:
        self._side.http.request("DELETE", self._path)


class Http:
    """One kept-alive connection; raises on anything but success."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc)
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._used = time.monotonic()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self.request("POST", path, json.dumps(body).encode()))
        return reply

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self.begin(method, path, body)
        response = self._connection.getresponse()
        content = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {content!r}")
        return content

    def begin(self, method: str, path: str, body: bytes | None) -> None:
        if time.monotonic() - self._used > IDLE_CONNECTION_S:
            self._connection.close()
        self._used = time.monotonic()
        kind = {"Content-Type": "application/json"} if body else {}
        self._connection.request(method, path, body, {**self._headers, **kind})


def finished(run: dict[str, Any]) -> dict[str, Any]:
    if run["status"] != "ok":
        raise RuntimeError({name: run[name] for name in ("status", "error", "stderr")})
    return run

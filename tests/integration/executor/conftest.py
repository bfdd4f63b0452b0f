"""Short ways to speak to a server over plain HTTP."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.executor_process import ExecutorProcess


class Session:
    """One session on a server, by its paths."""

    def __init__(self, http: httpx.Client, **create: Any) -> None:
        self.http = http
        reply = http.post("/v1/sessions", json=create)
        assert reply.status_code == 201, reply.text
        self.id: str = reply.json()["session_id"]
        self.path = f"/v1/sessions/{self.id}"

    def post(self, what: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.http.post(f"{self.path}/{what}", json=body, headers=headers)

    def get(self, what: str = "") -> Any:
        return self.http.get(f"{self.path}/{what}".rstrip("/")).json()

    def queue(self, code: str, **more: Any) -> Any:
        return self._json(self.post("cells", {"code": code, **more}), 201)

    def run(self, code: str | None = None, **more: Any) -> Any:
        return self._json(self.post("run", {**({} if code is None else {"code": code}), **more}), 200)

    def wait_until_running(self) -> None:
        wait_until(lambda: any(cell["status"] == "running" for cell in self.get("cells")["cells"]))

    @staticmethod
    def _json(reply: httpx.Response, status: int) -> Any:
        assert reply.status_code == status, reply.text
        return reply.json()


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def connect(executor: ExecutorProcess, **more: Any) -> httpx.Client:
    return httpx.Client(base_url=executor.url, timeout=60, **more)


@pytest.fixture
def http(executor: ExecutorProcess) -> Iterator[httpx.Client]:
    with connect(executor) as client:
        yield client


@pytest.fixture
def session(http: httpx.Client) -> Iterator[Session]:
    session = Session(http)
    yield session
    http.delete(session.path)

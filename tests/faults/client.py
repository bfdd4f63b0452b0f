"""A client that writes down each try: what it asked, when, and what came."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.faults.history import Call, History, What, cell_code, key_of

TRY_S = 45.0
"""Of one try: longer than the checker allows."""
DEFINITE_WITHIN_S = 90.0
PAUSE_S = 0.1


class NoDefiniteAnswer(Exception):
    """Every try failed for too long."""


class Witness:
    """For any thread."""

    def __init__(self, urls: Sequence[str], history: History, seed: int = 0) -> None:
        self.history = history
        self._urls = urls
        self._random = random.Random(seed)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
        self._http = httpx.Client(timeout=httpx.Timeout(TRY_S, connect=5.0), limits=limits, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def once(
        self,
        what: What,
        session: str,
        method: str,
        path: str = "",
        body: Any = None,
        *,
        key: str | None = None,
        replica: int | None = None,
        headers: Mapping[str, str] | None = None,
        begun: float | None = None,
    ) -> Call:
        """One try, at this replica or any."""
        number = self._random.randrange(len(self._urls)) if replica is None else replica
        all_headers = {**({"Idempotency-Key": key} if key else {}), **(headers or {})}
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        sent = time.monotonic()
        status, reply = None, None
        try:
            answer = self._http.request(
                method, f"{self._urls[number]}/v1/sessions{path}", headers=all_headers, **content
            )
            status = answer.status_code
            reply = answer.json() if "json" in answer.headers.get("content-type", "") else None
        except (httpx.HTTPError, ValueError):  # no answer, or half of one
            status = None
        call = Call(session, what, sent, time.monotonic(), status, reply, _keys(body), number, begun)
        self.history.add(call)
        return call

    def surely(self, *args: Any, replica: int | None = None, **kwargs: Any) -> Call:
        """Tries until there is an answer that another try would not change: first at `replica`, then at any."""
        begun = time.monotonic()
        while True:
            call = self.once(*args, replica=replica, begun=begun, **kwargs)
            if is_definite(call):
                return call
            if time.monotonic() > begun + DEFINITE_WITHIN_S:
                raise NoDefiniteAnswer(str(call))
            replica = None
            time.sleep(PAUSE_S * (1 + self._random.random()))


class Talk:
    """One session, by a client that retries, and where its cells write what they do."""

    def __init__(
        self, witness: Witness, session: str, effects: Path | None, *, replay: bool = False, at: int | None = None
    ) -> None:
        self.witness = witness
        self.session = session
        self.effects = effects
        self._given = 0
        if replay:
            witness.history.replayed.add(session)
        body = {"session_id": session, "recovery": "replay" if replay else "fail"}
        self.created = witness.surely("create", session, "POST", "", body, key=f"create-{session}", replica=at)

    def code(self, seconds: float = 0.0) -> str:
        self._given += 1
        return cell_code(f"{self.session}.{self._given}", self.effects, seconds)

    def queue(self, *codes: str, at: int | None = None) -> Call:
        body = {"cells": [{"code": code, "cell_id": key_of(code).replace(".", "-")} for code in codes]}
        return self._surely("queue", "POST", "/cells", body, at=at)

    def run(self, code: str | None = None, *, key: str | None = None, at: int | None = None, **more: Any) -> Call:
        body = {**({} if code is None else {"code": code}), **more}
        self._given += code is None
        key = key or f"run-{self.session}-{key_of(code) if code else self._given}"
        return self._surely("run", "POST", "/run", body, key=key, at=at)

    def run_later(self, code: str, *, at: int | None = None) -> Call:
        """`Prefer: respond-async`, and then asked for until it has ended, of any replica."""
        key, prefer = f"later-{self.session}-{key_of(code)}", {"Prefer": "respond-async"}
        accepted = self._surely("run", "POST", "/run", {"code": code}, key=key, headers=prefer, at=at)
        deadline = time.monotonic() + DEFINITE_WITHIN_S
        while accepted.ok and time.monotonic() < deadline:
            found = self._surely("read", "GET", f"/runs/{accepted.body['run_id']}?wait_s=5")
            if found.status != 202:
                return found
        if accepted.ok:
            raise NoDefiniteAnswer(str(accepted))
        return accepted

    def read(self, *, at: int | None = None) -> Call:
        return self._surely("read", "GET", "/cells", at=at)

    def delete(self, *, at: int | None = None) -> Call:
        return self._surely("delete", "DELETE", at=at)

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Call:
        """Anything else, of replica 0 first."""
        return self._surely("read", method, path, body, at=0, **more)

    def finish(self) -> None:
        """The last run and the last word on every cell, for the checker."""
        last = self.run(self.code())
        if last.ok:
            cells = self.read()
            if cells.ok:
                self.witness.history.final[self.session] = cells.cells

    def _surely(self, what: What, method: str, path: str = "", body: Any = None, **more: Any) -> Call:
        at = more.pop("at", None)
        return self.witness.surely(what, self.session, method, f"/{self.session}{path}", body, replica=at, **more)


def is_definite(call: Call) -> bool:
    if call.status is None or call.status in (429, 500, 502, 503):
        return False
    return not (call.status == 409 and code_of(call) == "request_in_progress")


def code_of(call: Call) -> str | None:
    return call.body.get("code") if isinstance(call.body, dict) else None


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.01)


def _keys(body: Any) -> tuple[str, ...]:
    if not isinstance(body, dict):
        return ()
    cells = body.get("cells", [body])
    return tuple(key_of(cell["code"]) for cell in cells if cell.get("code", "").startswith("KEY = "))

"""What is known of a run of the cluster: what clients saw, and what truly happened.

A cell appends itself to `LOG`, a list in its session's namespace, and gives that list as its result: so every run shows
the state it found. Where cells may reach the host's files they also write, outside of Cellar's knowledge, when they
start, go on and end. All times are of the machine's one monotonic clock, in seconds.
"""

import ast
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

What = Literal["create", "queue", "run", "read", "delete"]

CELL = """KEY = {key!r}
import os, time
if "LOG" not in globals(): LOG, KERNEL = [], os.urandom(4).hex()
def note(what):
    if {path!r}:
        fd = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{{what}} {{KEY}} {{KERNEL}} {{time.monotonic_ns()}}\\n".encode())
        os.close(fd)
note("start")
LOG.append(KEY)
for _ in range({ticks}):
    time.sleep({tick_s})
    note("tick")
note("end")
print(time.monotonic_ns())
LOG"""
TICK_S = 0.05


def cell_code(key: str, effects: Path | None, seconds: float = 0.0) -> str:
    """A cell with this key that takes so long, and writes what happens to the file `effects`, if any."""
    return CELL.format(key=key, path=str(effects) if effects else "", ticks=round(seconds / TICK_S), tick_s=TICK_S)


def key_of(code: str) -> str:
    key = ast.literal_eval(code.partition("\n")[0].removeprefix("KEY = "))
    assert isinstance(key, str)
    return key


@dataclass(frozen=True, slots=True)
class Call:
    """One try of a request, as its client saw it."""

    session: str
    what: What
    sent: float
    ended: float
    status: int | None
    """Of HTTP; None when no (whole) answer came."""
    body: Any = None
    keys: tuple[str, ...] = ()
    """Of the cells that it gives to the session."""
    replica: int = -1
    begun: float | None = None
    """When the first try of the same request was sent, if this is a later one."""

    @property
    def since(self) -> float:
        """Nothing of the request was done before."""
        return self.sent if self.begun is None else self.begun

    @property
    def ok(self) -> bool:
        return self.status is not None and self.status < 300

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Those in the answer."""
        if not self.ok or not isinstance(self.body, dict):
            return []
        cells: list[dict[str, Any]] = self.body.get("cells", [])
        return cells

    def __str__(self) -> str:
        answer = json.dumps(self.body)[:300] if self.body is not None else ""
        asked = f"{self.sent:.3f} {self.ended:.3f} {self.what} {','.join(self.keys)}"
        return f"{asked} @{self.replica} -> {self.status} {answer}"


@dataclass(frozen=True, slots=True)
class Effect:
    """A line that a cell wrote."""

    what: str
    """start, tick, end."""
    key: str
    kernel: str
    """A random name that the kernel gave itself."""
    at: float


@dataclass(frozen=True, slots=True)
class Fault:
    what: str
    begun: float
    ended: float


@dataclass(slots=True)
class History:
    """All of it. For any thread."""

    calls: list[Call] = field(default_factory=list)
    effects: dict[str, list[Effect]] = field(default_factory=dict)
    """By session, in the order in which they were written. Empty where cells are in jails."""
    replayed: set[str] = field(default_factory=set)
    """Sessions with `recovery: replay`."""
    final: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By session: all its cells, read at the very end, after a last run. Missing where it is gone or lost."""
    faults: list[Fault] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    """What was there at the end and should not have been."""
    surprises: list[str] = field(default_factory=list)
    """Answers other than a scenario expected."""
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def add(self, call: Call) -> None:
        with self._one_at_a_time:
            self.calls.append(call)

    def expect(self, as_expected: object, what: object) -> None:
        if not as_expected:
            self.surprises.append(str(what))

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """It is at work inside."""
        begun = time.monotonic()
        try:
            yield
        finally:
            with self._one_at_a_time:
                self.faults.append(Fault(what, begun, time.monotonic()))

    def read_effects(self, session: str, path: Path) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        self.effects[session] = [
            Effect(what, key, kernel, int(at) / 1e9) for what, key, kernel, at in (line.split() for line in lines)
        ]

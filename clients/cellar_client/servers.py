"""Several servers that share their sessions: which is asked first, and which one next. Knows no clock, no network.

Any server answers for any session. The one that created it answers soonest: another one has to ask it.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Generic, TypeVar

from cellar_client.errors import (
    CellarError,
    ConnectionFailed,
    RequestTimeout,
    ServerUnavailable,
    ShuttingDown,
    StoreUnavailable,
    TooManySessions,
)
from cellar_client.schemas import Session

Server = TypeVar("Server")

LEFT_OUT_S = 5.0
"""How long a server that can answer nobody is not asked, as long as there are others."""
HOMES = 50_000
"""Sessions whose server is remembered; the one used longest ago is forgotten first."""


class Servers(Generic[Server]):
    """The servers of one client, whatever stands for each (`all`). For any number of threads."""

    def __init__(self, servers: Sequence[Server]) -> None:
        if not servers:
            raise ValueError("there is no server")
        self.all = tuple(servers)
        self._out_until_s = [float("-inf")] * len(servers)
        self._turns = cycle(range(len(servers)))
        self._homes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def route(self, session_id: str | None, *, now_s: float) -> "Route[Server]":
        """The way of one operation: first to the server of its session, else to the one whose turn it is."""
        return Route(self, session_id, self._first(session_id, now_s) if len(self.all) > 1 else 0)

    def leave_out(self, index: int, *, until_s: float) -> None:
        self._out_until_s[index] = until_s

    def after(self, index: int, refused: Collection[int], now_s: float) -> int | None:
        """The next one in turn that is neither left out nor in `refused`."""
        turns = ((index + step) % len(self.all) for step in range(1, len(self.all) + 1))
        return next((i for i in turns if i not in refused and self._out_until_s[i] <= now_s), None)

    def soonest(self) -> int:
        """Of servers that are all left out, the one that comes back first."""
        return min(range(len(self.all)), key=self._out_until_s.__getitem__)

    def settle(self, session_ids: Iterable[str], index: int) -> None:
        """From now on this server is asked about these sessions."""
        with self._lock:
            for session_id in session_ids:
                self._homes[session_id] = index
                self._homes.move_to_end(session_id)
            while len(self._homes) > HOMES:
                self._homes.popitem(last=False)

    def _first(self, session_id: str | None, now_s: float) -> int:
        home = None if session_id is None else self._homes.get(session_id)
        if home is not None and self._out_until_s[home] <= now_s:
            return home
        with self._lock:
            turn = next(self._turns)
        following = self.after(turn - 1, (), now_s)
        return self.soonest() if following is None else following


@dataclass(slots=True)
class Route(Generic[Server]):
    """The way of one operation from server to server."""

    servers: Servers[Server]
    session_id: str | None
    index: int
    refused: set[int] = field(default_factory=set)
    """Those that it has been to, until all have."""

    @property
    def server(self) -> Server:
        """The one to ask now."""
        return self.servers.all[self.index]

    def answered(self, value: object) -> None:
        """The sessions that the operation is about, and those that it made, stay with the server that answered."""
        if len(self.servers.all) > 1:
            about = [] if self.session_id is None else [self.session_id]
            self.servers.settle([*about, *_sessions_in(value)], self.index)

    def refuse(self, error: CellarError, *, now_s: float) -> bool:
        """Go on to the next server where that may help. True: to one that it has not been to yet."""
        if len(self.servers.all) == 1 or not _another_may_help(error):
            return False
        if _helps_nobody(error):
            self.servers.leave_out(self.index, until_s=now_s + LEFT_OUT_S)
        self.refused.add(self.index)
        fresh = self.servers.after(self.index, self.refused, now_s)
        if fresh is not None:
            self.index = fresh
            return True
        self.refused.clear()
        again = self.servers.after(self.index, (), now_s)
        self.index = self.servers.soonest() if again is None else again
        return False


def _another_may_help(error: CellarError) -> bool:
    return isinstance(error, ConnectionFailed | RequestTimeout | ServerUnavailable | TooManySessions)


def _helps_nobody(error: CellarError) -> bool:
    """Whatever else the server is asked now, it will say the same."""
    return isinstance(error, ConnectionFailed | ShuttingDown | StoreUnavailable)


def _sessions_in(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item.session_id for item in values if isinstance(item, Session)]

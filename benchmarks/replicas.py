"""Many sessions on three servers, one of which is killed in the middle: what their clients see.

    make bench-replicas       or: .venv/bin/python -m benchmarks.replicas [--sessions 1000] [--cells 10] [--lease-s 5]

Half of the sessions are to be replayed, half to fail. Every cell appends its number to a list of its session and prints
the list: so an effect that is missing, or there twice, or back from the dead is seen in the state itself, not only in
statuses. One server gets SIGKILL when half of all cells are answered.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.executor.cluster import Cluster, cluster
from benchmarks.executor.system import machine
from cellar_client import AsyncCellar, AsyncSession, CellarError, Run, SessionLost
from cellar_client.schemas import Recovery
from cellar_client.transport import HttpReply, HttpRequest
from cellar_client.transport.aio import AiohttpTransport

SERVERS = 3
AT_ONCE = 128
"""Requests of all clients together."""
TIMEOUT_S = 30.0

SESSIONS = "sessions"
ASKED = "cells asked for"
OK = "answered ok"
REBUILT = "of these, in a session rebuilt for them"
CELL_LOST = "cells lost in the middle, and said so"
SESSION_LOST = "sessions lost, and said so"
AGAIN = "cells asked for more than once, under the same key"
OTHER = "other errors"
MISSING = "silent losses: an acknowledged effect is gone"
TWICE = "duplicates: an effect is there twice"
RISEN = "an effect is there that was told to be lost"
ROWS = (SESSIONS, ASKED, OK, REBUILT, CELL_LOST, SESSION_LOST, AGAIN, OTHER, MISSING, TWICE, RISEN)


def main() -> None:
    arguments = parse()
    flags = (f"--lease-s={arguments.lease_s}", f"--max-sessions={arguments.sessions + 100}")
    with cluster(SERVERS, *flags) as servers:
        print(machine(servers.sides[0].described()), flush=True)
        watch = asyncio.run(measure(servers, arguments.sessions, arguments.cells))
    print(table(watch))
    print(f"\n{SERVERS} servers, leases of {arguments.lease_s:g} s, one killed after {watch.kill_after} cells.")
    print(f"All sessions had an answer again {watch.all_back_s:.1f} s later.")
    for failure in watch.failures[:10]:
        print(f"* {failure}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=10)
    parser.add_argument("--lease-s", type=float, default=5.0)
    return parser.parse_args()


@dataclass
class Watch:
    """What was seen so far, by the sessions' recovery and by row."""

    servers: Cluster
    kill_after: int
    """Cells that are answered."""
    seen: dict[Recovery, Counter[str]] = field(default_factory=lambda: {"replay": Counter(), "fail": Counter()})
    failures: list[str] = field(default_factory=list)
    killed_at: float | None = None
    all_back_s: float = 0.0
    _answered: int = 0

    def answered(self) -> None:
        self._answered += 1
        if self._answered == self.kill_after:
            self.servers.servers[0].kill()
            self.killed_at = time.monotonic()

    def back(self) -> None:
        """A session has its first answer since the kill."""
        assert self.killed_at is not None
        self.all_back_s = max(self.all_back_s, time.monotonic() - self.killed_at)


class Counted(AiohttpTransport):
    """Knows how often each run was sent, over all servers."""

    sent: Counter[str] = Counter()

    async def send(self, request: HttpRequest) -> HttpReply:
        if request.path.endswith("/run"):
            self.sent[request.path + request.headers["Idempotency-Key"]] += 1
        return await super().send(request)


async def measure(servers: Cluster, sessions: int, cells: int) -> Watch:
    watch = Watch(servers, kill_after=sessions * cells // 2)
    slots = asyncio.Semaphore(AT_ONCE)
    transports = [Counted(server.url, api_key=None, timeout_s=TIMEOUT_S) for server in servers.servers]
    async with AsyncCellar(transport=transports) as cellar:
        clients = [Client(watch, slots, ("replay", "fail")[number % 2]) for number in range(sessions)]
        await asyncio.gather(*(client.work(cellar, cells) for client in clients))
    for client in clients:
        tries = (count for key, count in Counted.sent.items() if key.startswith(client.path))
        watch.seen[client.recovery][AGAIN] += sum(count > 1 for count in tries)
    return watch


class Client:
    """One session's: it knows what the session's list has to be."""

    def __init__(self, watch: Watch, slots: asyncio.Semaphore, recovery: Recovery) -> None:
        self._watch = watch
        self._slots = slots
        self.recovery: Recovery = recovery
        self._count = watch.seen[recovery]
        self._there: list[int] = []
        self._unknown: set[int] = set()
        self.path = ""

    async def work(self, cellar: AsyncCellar, cells: int) -> None:
        async with self._slots:
            created = await cellar.create_session(recovery=self.recovery)
        session = cellar.attach(created.session_id)
        self.path = f"/v1/sessions/{session.session_id}/"
        self._count[SESSIONS] += 1
        was_back = False
        for number in range(cells):
            async with self._slots:
                goes_on = await self._ask(session, number)
            if self._watch.killed_at is not None and not was_back:
                was_back = True
                self._watch.back()
            if not goes_on:
                return
            self._watch.answered()

    async def _ask(self, session: AsyncSession, number: int) -> bool:
        """Whether the session goes on."""
        self._count[ASKED] += 1
        try:
            run = await session.run(f"there = globals().get('there', []); there.append({number}); print(there)")
        except SessionLost:
            self._count[SESSION_LOST] += 1
            return False
        except CellarError as error:
            self._unknown.add(number)
            self._other(f"{session.session_id}: {type(error).__name__}: {error}")
            return True
        self._judge(run, number)
        return True

    def _judge(self, run: Run, number: int) -> None:
        if run.status == "lost":
            self._count[CELL_LOST] += 1
        elif run.status != "ok":
            self._other(f"{run.session_id}: {run.status}: {run.stderr or run.error}")
        else:
            there, expected = json.loads(run.stdout), [*self._there, number]
            self._count[OK] += 1
            self._count[REBUILT] += run.recovered
            self._count[MISSING] += not set(expected) <= set(there)
            self._count[TWICE] += len(there) > len(set(there))
            self._count[RISEN] += not set(there) <= {*expected, *self._unknown}
            self._there = there

    def _other(self, failure: str) -> None:
        self._count[OTHER] += 1
        self._watch.failures.append(failure[:300])


def table(watch: Watch) -> str:
    lines = ["| | replay | fail | all |", "|---|---|---|---|"]
    for row in ROWS:
        counts = [watch.seen[recovery][row] for recovery in ("replay", "fail")]
        lines.append(f"| {row} | {counts[0]} | {counts[1]} | {sum(counts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

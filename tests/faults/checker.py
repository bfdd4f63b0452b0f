"""Whether a history keeps the promises of docs/reliability.md.

A pure function, so that it is tested with histories made by hand, one for each way to break a promise (`test_checker`).

I1   no cell starts twice, but for replays in a later kernel of cells that had ended
I2   an acknowledged effect is in every later reading while the session lives
I3   no silent loss: what is not there is said to be lost; what was accepted is in the log
I4   no two cells of a session overlap, in one kernel or in two
I5   cells run in their order of acceptance, which is the order in which clients gave them
I6   every answer comes in time
I7   what a finished cell or run says never changes
I8   nothing comes back after an acknowledged delete
I9   nothing is left behind
I10  what was acknowledged while Redis was down is there afterwards
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tests.faults.history import Call, Effect, History, key_of

TERMINAL = ("ok", "error", "timeout", "oom", "killed", "lost", "skipped", "withdrawn")
NO_EFFECT = ("lost", "killed", "oom", "skipped", "withdrawn", "pending")
"""The kernel of such a cell died with it, or it never had one: no later kernel may show its effect."""
ANSWER_WITHIN_S = 40.0
"""The longest time-out of the cells used here, and every grace on the way to an answer."""
STALLS = ("pause", "black hole", "full")
"""Faults during which no answer can come."""


@dataclass(frozen=True, slots=True)
class Violation:
    promise: str
    session: str
    what: str
    evidence: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{self.promise} {self.session}: {self.what}", *self.evidence])


def check(history: History) -> list[Violation]:
    sessions = {call.session for call in history.calls} | history.effects.keys()
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in sorted(history.calls, key=lambda call: call.ended):
        calls[call.session].append(call)
    found = [Violation("I9", "", thing) for thing in history.leftovers]
    for session in sorted(sessions):
        found += _Session(session, calls[session], history).violations()
    return found


@dataclass(frozen=True, slots=True)
class _Session:
    name: str
    calls: list[Call]
    history: History

    @property
    def effects(self) -> list[Effect]:
        return self.history.effects.get(self.name, [])

    @property
    def record(self) -> dict[str, dict[str, Any]] | None:
        """The last word on each cell, by key."""
        cells = self.history.final.get(self.name)
        return None if cells is None else {key_of(cell["code"]): cell for cell in cells}

    def violations(self) -> Iterator[Violation]:
        for promise, complaints in (
            ("I1", self.starts_twice()),
            ("I2", self.forgets()),
            ("I3", self.loses_silently()),
            ("I4", self.overlaps()),
            ("I5", self.reorders()),
            ("I6", self.answers_late()),
            ("I7", self.changes_its_mind()),
            ("I8", self.rises_again()),
        ):
            for what, evidence in complaints:
                down = promise in ("I2", "I3") and self._acknowledged_while_down(what)
                yield Violation("I10" if down else promise, self.name, what, tuple(map(str, evidence)))

    def starts_twice(self) -> "Complaints":
        starts: dict[str, list[Effect]] = defaultdict(list)
        ended: set[tuple[str, str]] = set()
        for effect in self.effects:
            if effect.what == "end":
                ended.add((effect.key, effect.kernel))
            if effect.what != "start":
                continue
            earlier = starts[effect.key]
            replay = self.name in self.history.replayed and all(e.kernel != effect.kernel for e in earlier)
            if earlier and not (replay and any((effect.key, e.kernel) in ended for e in earlier)):
                yield f"{effect.key} starts again", [*earlier, effect]
            earlier.append(effect)
        for log, call in self._logs():
            if len(set(log)) < len(log):
                yield "a cell is in LOG twice", [log, call]

    def forgets(self) -> "Complaints":
        acknowledged: list[tuple[float, str]] = []
        for call in self.calls:
            acknowledged += [(call.ended, key_of(cell["code"])) for cell in call.cells if cell["status"] == "ok"]
        for log, call in self._logs():
            missing = {key for at, key in acknowledged if at < call.since} - set(log) - self._later_than(log, call)
            if missing:
                yield f"acknowledged, not there later: {' '.join(sorted(missing))}", [log, call]

    def loses_silently(self) -> "Complaints":
        yield from self._vanishes()
        record = self.record
        if record is None:
            return
        for call in self.calls:
            for key in call.keys if call.ok else ():
                if key not in record:
                    yield f"accepted, not in the log: {key}", [call]
        for log, call in self._logs():
            before = [key for key, cell in record.items() if cell["index"] < record[log[-1]]["index"]]
            for key in before:
                if record[key]["status"] == "ok" and key not in log:
                    yield f"recorded as ok, not there later: {key}", [record[key], log, call]
            for key in log:
                if record[key]["status"] in NO_EFFECT:
                    yield f"recorded as {record[key]['status']}, there later: {key}", [record[key], log, call]

    def _vanishes(self) -> "Complaints":
        created = next((call for call in self.calls if call.what == "create" and call.ok), None)
        delete_sent = min((call.sent for call in self.calls if call.what == "delete"), default=float("inf"))
        for call in self.calls:
            if created is None or not created.ended < call.sent or call.ended > delete_sent:
                continue
            if call.status == 404 and call.body["code"] == "session_not_found":
                yield "the session is gone, and nobody has deleted it", [created, call]

    def overlaps(self) -> "Complaints":
        spans: dict[tuple[str, str], list[Effect]] = defaultdict(list)
        for effect in self.effects:
            spans[effect.key, effect.kernel].append(effect)
        for (one, first), (other, second) in combinations(spans.items(), 2):
            if first[0].at < second[-1].at and second[0].at < first[-1].at:
                yield f"{one[0]} in {one[1]} and {other[0]} in {other[1]} overlap", [*first, *second]

    def reorders(self) -> "Complaints":
        places = {key_of(cell["code"]): cell["index"] for call in self.calls for cell in call.cells}
        places |= {key: cell["index"] for key, cell in (self.record or {}).items()}
        last: dict[str, Effect] = {}
        for effect in self.effects:
            if effect.what == "start" and effect.key in places:
                before = last.get(effect.kernel)
                if before is not None and places[before.key] > places[effect.key]:
                    yield f"{effect.key} runs after {before.key}", [before, effect]
                last[effect.kernel] = effect
        giving = [call for call in self.calls if call.keys and call.ok]
        for one, other in combinations(sorted(giving, key=lambda call: call.since), 2):
            order = [places[key] for key in (*one.keys, *other.keys) if key in places]
            if one.ended < other.since and order != sorted(order):
                yield "accepted in another order than given", [one, other]
        for call in giving:
            order = [places[key] for key in call.keys if key in places]
            if order != sorted(order):
                yield "accepted in another order than given", [call]

    def answers_late(self) -> "Complaints":
        for call in self.calls:
            stalled = any(
                fault.what.startswith(STALLS) and fault.begun < call.ended and call.sent < fault.ended
                for fault in self.history.faults
            )
            if call.ended - call.sent > ANSWER_WITHIN_S and not stalled:
                yield f"no answer within {ANSWER_WITHIN_S:.0f} s", [call]

    def changes_its_mind(self) -> "Complaints":
        said: dict[str, tuple[Any, object]] = {}
        for call in self.calls:
            for name, value in _results(call):
                if said.setdefault(name, (value, call))[0] != value:
                    yield f"{name} reads otherwise", [said[name][1], call]
        for key, cell in (self.record or {}).items():
            if key in said and said[key][0] != cell:
                yield f"{key} reads otherwise at the end", [said[key][1], cell]

    def rises_again(self) -> "Complaints":
        deleted = next((call for call in self.calls if call.what == "delete" and call.ok), None)
        if deleted is None:
            return
        for effect in self.effects:
            if effect.at > deleted.ended:
                yield f"{effect.key} goes on after the delete", [deleted, effect]
        for call in self.calls:
            if call.sent > deleted.ended and call.what != "delete" and call.ok:
                yield f"{call.what} after the delete", [deleted, call]

    def _logs(self) -> Iterator[tuple[list[str], Call]]:
        """What runs and reads have shown of the session's state, with the call that was the first to show it."""
        seen: set[str] = set()
        for call in self.calls:
            for cell in call.cells:
                key = key_of(cell["code"])
                if cell["status"] == "ok" and key not in seen:
                    seen.add(key)
                    yield ast.literal_eval(cell["result"]), call

    def _later_than(self, log: list[str], call: Call) -> set[str]:
        """Cells behind the one that shows `log`, which ran before its call heard of it."""
        places = {key_of(cell["code"]): cell["index"] for other in self.calls for cell in other.cells}
        return {key for key, place in places.items() if place > places[log[-1]]}

    def _acknowledged_while_down(self, what: str) -> bool:
        return any(
            fault.what.startswith("Redis") and fault.begun < call.ended < fault.ended and call.ok
            for fault in self.history.faults
            for call in self.calls
            for key in (*call.keys, *(key_of(cell["code"]) for cell in call.cells))
            if key in what.split()
        )


Complaints = Iterator[tuple[str, Iterable[object]]]


def _results(call: Call) -> Iterator[tuple[str, Any]]:
    for cell in call.cells:
        if cell["status"] in TERMINAL:
            yield key_of(cell["code"]), cell
    if call.cells and "run_id" in call.body:
        yield call.body["run_id"], call.body

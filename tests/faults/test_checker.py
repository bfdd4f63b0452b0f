"""The checker finds each kind of broken promise, in histories made by hand, and nothing in one that keeps them all."""

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.checker import ANSWER_WITHIN_S, check
from tests.faults.history import Call, Effect, Fault, History, cell_code

Cell = dict[str, Any]


def cell(index: int, *log: str, status: str = "ok", key: str = "", stdout: str = "") -> Cell:
    """A cell whose key is the last of `log`, which it shows."""
    code = cell_code(key or log[-1], None)
    return {"index": index, "status": status, "code": code, "stdout": stdout, "result": repr([*log]) if log else None}


def run(sent: float, *cells: Cell, keys: tuple[str, ...] = (), run_id: str = "", **more: Any) -> Call:
    body = {"run_id": run_id or f"r-{sent}", "cells": [*cells]}
    return Call("s", "run", sent, sent + 0.5, 200, body, keys, **more)


def effects(*lines: tuple[str, str, str, float]) -> list[Effect]:
    return [Effect(*line) for line in lines]


A, B = cell(0, "a"), cell(1, "a", "b")


def good() -> History:
    """Two cells, acknowledged; a take-over after the second, and a replay of both, then a third one."""
    c = cell(2, "a", "b", "c")
    return History(
        calls=[
            Call("s", "create", 0.0, 0.5, 201, {"session_id": "s"}),
            run(1.0, A, keys=("a",), run_id="r1"),
            run(2.0, B, keys=("b",)),
            run(2.6, A, keys=("a",), run_id="r1", begun=1.0),
            run(5.0, c, keys=("c",)),
        ],
        effects={
            "s": effects(
                *(
                    ("start", "a", "k1", 1.1),
                    ("end", "a", "k1", 1.2),
                    ("start", "b", "k1", 2.1),
                    ("end", "b", "k1", 2.2),
                ),
                *(
                    ("start", "a", "k2", 5.0),
                    ("end", "a", "k2", 5.1),
                    ("start", "b", "k2", 5.2),
                    ("end", "b", "k2", 5.3),
                ),
                *(("start", "c", "k2", 5.4), ("end", "c", "k2", 5.5)),
            )
        },
        replayed={"s"},
        final={"s": [A, B, c]},
    )


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert check(good()) == []


def starts_again_in_its_kernel(history: History) -> None:
    history.effects["s"].insert(2, Effect("start", "a", "k1", 1.5))


def starts_again_though_it_never_ended(history: History) -> None:
    del history.effects["s"][1]


def starts_again_in_a_session_without_replay(history: History) -> None:
    history.replayed.clear()


def is_in_the_log_twice(history: History) -> None:
    history.calls[2] = run(2.0, cell(1, "a", "a", "b"), keys=("b",))
    history.final.clear()


def forgets(history: History) -> None:
    history.calls[4] = run(5.0, cell(2, "b", "c"), keys=("c",))
    history.final.clear()


def forgets_a_queued_cell(history: History) -> None:
    history.calls.append(Call("s", "queue", 3.0, 3.1, 201, {"cells": []}, ("q",)))


def shows_a_lost_cell(history: History) -> None:
    history.final["s"][1] = cell(1, status="lost", key="b")
    history.calls[2] = Call("s", "run", 2.0, 2.5, None, None, ("b",))


def is_gone(history: History) -> None:
    history.calls.append(Call("s", "read", 6.0, 6.1, 404, {"code": "session_not_found"}))


def overlaps(history: History) -> None:
    history.effects["s"].insert(4, Effect("tick", "b", "k1", 5.05))


def runs_in_another_order(history: History) -> None:
    lines = history.effects["s"]
    lines[0:4] = [replace(line, at=line.at + 0.01) for line in (*lines[2:4], *lines[0:2])]


def accepts_in_another_order(history: History) -> None:
    history.calls += [
        Call("s", "queue", 6.0, 6.1, 201, {"cells": [cell(5, key="x", status="pending")]}, ("x",)),
        Call("s", "queue", 6.2, 6.3, 201, {"cells": [cell(4, key="y", status="pending")]}, ("y",)),
    ]
    history.final.clear()


def answers_late(history: History) -> None:
    history.calls.append(Call("s", "read", 6.0, 6.5 + ANSWER_WITHIN_S, None))


def says_otherwise(history: History) -> None:
    history.calls.append(run(6.0, cell(0, "a", stdout="other"), run_id="r9"))


def says_another_run(history: History) -> None:
    history.calls.append(run(6.0, A, B, run_id="r1"))


def goes_on_after_the_delete(history: History) -> None:
    history.calls.append(Call("s", "delete", 5.41, 5.45, 204))


def is_there_after_the_delete(history: History) -> None:
    history.calls += [Call("s", "delete", 6.0, 6.1, 204), Call("s", "create", 7.0, 7.1, 201, {})]


def leaves_something(history: History) -> None:
    history.leftovers.append("a process")


def acknowledges_without_redis(history: History) -> None:
    history.faults.append(Fault("Redis down", 2.0, 4.0))
    history.calls.append(Call("s", "queue", 3.0, 3.1, 201, {"cells": []}, ("q",)))


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (starts_again_in_its_kernel, "I1"),
        (starts_again_though_it_never_ended, "I1"),
        (starts_again_in_a_session_without_replay, "I1"),
        (is_in_the_log_twice, "I1"),
        (forgets, "I2"),
        (forgets_a_queued_cell, "I3"),
        (shows_a_lost_cell, "I3"),
        (is_gone, "I3"),
        (overlaps, "I4"),
        (runs_in_another_order, "I5"),
        (accepts_in_another_order, "I5"),
        (answers_late, "I6"),
        (says_otherwise, "I7"),
        (says_another_run, "I7"),
        (goes_on_after_the_delete, "I8"),
        (is_there_after_the_delete, "I8"),
        (leaves_something, "I9"),
        (acknowledges_without_redis, "I10"),
    ],
)
def test_a_broken_promise_is_found(broken: Any, promise: str) -> None:
    history = good()
    broken(history)
    assert promise in {violation.promise for violation in check(history)}


def test_no_answer_can_come_while_everything_stands_still() -> None:
    history = good()
    answers_late(history)
    history.faults.append(Fault("pause 1", 7.0, 8.0))
    assert check(history) == []

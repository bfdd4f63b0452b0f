"""`POST .../run?stream=true`: what a run does, told while it does it."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.integration.executor.conftest import Session, wait_until

Event = tuple[str, Any]


@contextmanager
def streamed(session: Session, body: Any, **headers: str) -> Iterator[httpx.Response]:
    with session.http.stream(
        "POST", f"{session.path}/run", params={"stream": "true"}, json=body, headers=headers
    ) as reply:
        assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        yield reply


def events(reply: httpx.Response) -> Iterator[Event]:
    name = ""
    for line in reply.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def all_events(session: Session, body: Any, **headers: str) -> list[Event]:
    with streamed(session, body, **headers) as reply:
        return list(events(reply))


def test_output_comes_while_the_cell_runs(session: Session) -> None:
    code = "import os, time\nprint('first')\nwhile not os.path.exists('go'): time.sleep(0.02)\nprint('second')"
    with streamed(session, {"code": code}) as reply:
        coming = events(reply)
        (run, accepted), (started, cell), (output, first) = next(coming), next(coming), next(coming)
        assert (run, started, output) == ("run", "cell_started", "output")
        assert (first["stream"], first["text"], first["cell_id"]) == ("stdout", "first\n", cell["cell_id"])
        session.post("interrupt")  # files wait for the cell's end, an interrupt does not
        rest = list(coming)
    assert [name for name, _ in rest] == ["cell", "done"]
    assert rest[-1][1]["run_id"] == accepted["run_id"]
    assert rest[-1][1]["error"]["type"] == "KeyboardInterrupt"


def test_every_cell_is_told_and_the_texts_are_those_of_the_run(session: Session) -> None:
    session.queue("import sys\nprint('out', end=''); print('err', file=sys.stderr)")
    told = all_events(session, {"code": "print('\N{EURO SIGN}' * 3); 1 / 0"})
    names = [name for name, _ in told]
    assert (names[0], names[-1]) == ("run", "done")
    assert names.count("cell_started") == names.count("cell") == 2
    run = told[-1][1]
    assert [body for name, body in told if name == "cell"] == run["cells"]
    for stream in ("stdout", "stderr"):
        texts = [body["text"] for name, body in told if name == "output" and body["stream"] == stream]
        assert "".join(texts) == run[stream]


def test_long_output_is_told_up_to_its_limit(session: Session) -> None:
    told = all_events(session, {"code": "for _ in range(100): print('x' * 9999)"})
    texts = "".join(body["text"] for name, body in told if name == "output")
    run = told[-1][1]
    assert run["truncated"]
    assert len(texts) == session.get()["limits"]["output_bytes"]
    assert texts.startswith(run["stdout"].partition("\n... [")[0])


def test_a_repeated_stream_gives_the_record(session: Session) -> None:
    session.run("runs = 0")
    key = {"Idempotency-Key": f"{session.id}-k"}
    first = all_events(session, {"code": "runs += 1; print(runs)"}, **key)
    again = all_events(session, {"code": "runs += 1; print(runs)"}, **key)
    assert again == [first[0], first[-1]]
    assert session.run("runs")["result"] == "1"


def test_a_refusal_before_the_first_event_is_a_problem(session: Session) -> None:
    refused = session.http.post(f"{session.path}/run", params={"stream": "true"}, json={"timeout_s": 80_000})
    assert (refused.status_code, refused.json()["code"]) == (422, "limit_too_high")
    refused = session.http.post(f"{session.path}/run", params={"stream": "perhaps"}, json={})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "stream")
    refused = session.http.post("/v1/sessions/unknown/run", params={"stream": "true"}, json={})
    assert refused.status_code == 404


def test_what_fails_after_the_first_event_is_the_last_event(session: Session) -> None:
    session.run("import time")
    stubborn = "while True:\n try: time.sleep(9)\n except KeyboardInterrupt: pass"
    with streamed(session, {"code": stubborn, "timeout_s": 2}) as first:
        coming = events(first)  # a reader that is dropped is a client that left
        assert [next(coming)[0], next(coming)[0]] == ["run", "cell_started"]
        told = all_events(session, {"code": "1"})
    assert [name for name, _ in told] == ["run", "error"]
    assert (told[-1][1]["status"], told[-1][1]["code"]) == (410, "session_lost")


def test_a_reader_that_reads_nothing_holds_nobody_up(session: Session) -> None:
    host, port = session.http.base_url.host, session.http.base_url.port
    for _ in range(40):
        session.queue("print('x' * 60_000)")
    body = b'{"code": "finished = 1"}'
    head = f"POST {session.path}/run?stream=true HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, port)) as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: session.get()["cells_pending"] == 0 and session.get()["status"] == "ready")
        assert session.run("finished")["result"] == "1"


def test_a_stream_waits_its_turn(session: Session) -> None:
    session.run("import time")
    with streamed(session, {"code": "time.sleep(1)"}) as slow:
        coming = events(slow)
        assert [next(coming)[0], next(coming)[0]] == ["run", "cell_started"]
        with streamed(session, {"code": "2"}) as waiting:
            told = events(waiting)
            assert next(told)[0] == "run"
            assert list(coming)[-1][0] == "done"
            assert [name for name, _ in told] == ["cell_started", "cell", "done"]

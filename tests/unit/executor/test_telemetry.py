"""One line of JSON for each event, whatever is in it."""

import contextvars
import json
import logging
import sys

from cellar_executor.telemetry.logs import JsonLines, bind


def test_an_event_is_one_line_with_its_ids() -> None:
    record = logging.makeLogRecord({"msg": "cell\nfinished", "levelname": "INFO", "session_id": "s", "cell_id": "c\n"})
    text = JsonLines().format(record)
    assert "\n" not in text
    assert json.loads(text).items() >= {"message": "cell\nfinished", "session_id": "s", "cell_id": "c\n"}.items()


def test_a_traceback_stays_on_the_line() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    text = JsonLines().format(record)
    assert "\n" not in text
    assert "ValueError: why" in json.loads(text)["exception"]


def test_bound_ids_stand_on_every_line_of_the_task_and_nowhere_else() -> None:
    def line() -> dict[str, str]:
        fields: dict[str, str] = json.loads(JsonLines("server-1").format(logging.makeLogRecord({"msg": "m"})))
        return fields

    def work() -> dict[str, str]:
        bind(request_id="r")
        bind(session_id="s")
        return line()

    assert contextvars.copy_context().run(work).items() >= {"request_id": "r", "session_id": "s"}.items()
    assert "request_id" not in line()
    assert line()["instance"] == "server-1"

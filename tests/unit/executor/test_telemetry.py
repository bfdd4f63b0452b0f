"""One line of JSON for each event, whatever is in it."""

import json
import logging
import sys

from cellar_executor.telemetry import JsonLines


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

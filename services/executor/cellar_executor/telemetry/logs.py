"""Logs: one JSON object per line on stderr. Never the text of a cell, never its output, never a key.

Ids that are bound once (`bind`) stand on every line that is logged on behalf of the same request, however deep below.
"""

import json
import logging
import random
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

FIELDS = (
    *("session_id", "cell_id", "run_id", "status", "duration_s", "generation", "epoch", "copies"),
    *("method", "route"),
)
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

_bound: ContextVar[Mapping[str, str]] = ContextVar("bound", default=MappingProxyType({}))


def bind(**ids: str) -> None:
    """From here on, in this task and those that it starts."""
    _bound.set({**_bound.get(), **ids})


def request_id() -> str | None:
    """Of the request on whose behalf this task works."""
    return _bound.get().get("request_id")


def accepted_request_id(given: bytes | None) -> str:
    """The client's own id where it is a plain word, else a new one."""
    return given.decode() if given is not None and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


class JsonLines(logging.Formatter):
    def __init__(self, instance: str = "") -> None:
        super().__init__()
        self._instance = instance

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "instance": self._instance,
            **_bound.get(),
        }
        line.update({name: getattr(record, name) for name in FIELDS if hasattr(record, name)})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("uvicorn", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_as(instance: str) -> None:
    """Every line says from now on which server wrote it."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines(instance))

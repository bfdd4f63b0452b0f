"""Where the servers are and how to be let in: the only file of the client that reads the environment."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "CELLAR_URL"
API_KEY_VARIABLE = "CELLAR_API_KEY"


@dataclass(frozen=True, slots=True)
class Settings:
    base_urls: tuple[str, ...]
    api_key: str | None


def settings(base_url: str | Sequence[str] | None = None, api_key: str | None = None) -> Settings:
    """What the caller gave; for what was left out, the environment; else the default. What is empty is left out.

    A string may name several servers, separated by commas.
    """
    return Settings(
        base_urls=_urls(base_url or ()) or _urls(os.environ.get(URL_VARIABLE, "")) or (DEFAULT_URL,),
        api_key=api_key or os.environ.get(API_KEY_VARIABLE) or None,
    )


def _urls(given: str | Sequence[str]) -> tuple[str, ...]:
    """Each server once."""
    listed = given.split(",") if isinstance(given, str) else given
    return tuple(dict.fromkeys(filter(None, map(str.strip, listed))))

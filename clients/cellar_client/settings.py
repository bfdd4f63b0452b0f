"""Where the server is and how to be let in: the only file of the client that reads the environment."""

import os
from dataclasses import dataclass

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "CELLAR_URL"
API_KEY_VARIABLE = "CELLAR_API_KEY"


@dataclass(frozen=True, slots=True)
class Settings:
    base_url: str
    api_key: str | None


def settings(base_url: str | None = None, api_key: str | None = None) -> Settings:
    """What the caller gave; for what was left out, the environment; else the default. An empty string is left out."""
    return Settings(
        base_url=base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL,
        api_key=api_key or os.environ.get(API_KEY_VARIABLE) or None,
    )

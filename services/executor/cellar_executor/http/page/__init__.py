"""The page at `/`: three files, read once, and the headers that keep a browser from running anything else.

What it shows is hostile (outputs of cells), so it is put in as text only. The policy is the second wall: nothing inline
runs, nothing is loaded from or sent to anywhere but this server, and no markup can be made of a string.
"""

from collections.abc import Mapping
from importlib.resources import files

from fastapi import Response

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
TYPES = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}


def _load(name: str) -> tuple[bytes, Mapping[str, str]]:
    return files(__name__).joinpath(name).read_bytes(), {**HEADERS, "Content-Type": f"{TYPES[name]}; charset=utf-8"}


FILES = {name: _load(name) for name in TYPES}


def page_file(name: str) -> Response:
    data, headers = FILES[name]
    return Response(data, headers=dict(headers))

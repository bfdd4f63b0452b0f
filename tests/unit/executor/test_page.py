"""The page's files, and the headers that go with them."""

import re

import httpx
import pytest

from cellar_executor.http.page import TYPES


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css"])
async def test_nothing_foreign_can_be_loaded_run_or_kept(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.get(path)
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["content-type"] == f"{TYPES[path[1:] or 'index.html']}; charset=utf-8"


async def test_the_markup_has_nothing_inline_and_names_no_other_host(http: httpx.AsyncClient) -> None:
    markup, script, style = [(await http.get(path)).text for path in ("/", "/page.js", "/page.css")]
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)", markup)
    assert not re.search(r"https?:|//\w", markup + style)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|cookie", script)

"""What the operator may say."""

from pathlib import Path

import pytest

from cellar_executor.settings import is_loopback, parse_api_keys, parse_runtimes

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("example.org", False), ("127.0.0.1.example.org", False), ("", False)],
)  # fmt: skip
def test_loopback_is_this_machine_only(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_keys_belong_to_tenants() -> None:
    assert parse_api_keys("") == {}
    assert parse_api_keys(f"{KEY}, bob:{KEY}2,") == {KEY: "default", f"{KEY}2": "bob"}


@pytest.mark.parametrize("text", ["short", "bob:short", f"b/ob:{KEY}"])
def test_weak_keys_and_odd_tenants_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"API key"):
        parse_api_keys(text)


def test_runtimes_have_names_and_exist(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    assert parse_runtimes([str(python), f"old={python}"]) == {"python": python, "old": python}
    assert list(parse_runtimes([])) == ["python"]
    with pytest.raises(ValueError, match="no Python"):
        parse_runtimes(["gone=/nonexistent"])

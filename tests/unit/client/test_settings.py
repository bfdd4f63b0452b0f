import pytest

from cellar_client.settings import Settings, settings


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("CELLAR_URL", raising=False)
    monkeypatch.delenv("CELLAR_API_KEY", raising=False)
    return monkeypatch


def test_without_anything_the_server_is_local_and_has_no_key(environment: pytest.MonkeyPatch) -> None:
    assert settings() == Settings(("http://127.0.0.1:8080",), None)


def test_the_environment_fills_in_what_was_left_out(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CELLAR_URL", "http://cellar.test")
    environment.setenv("CELLAR_API_KEY", "key")
    assert settings() == Settings(("http://cellar.test",), "key")
    assert settings("http://other.test", "other") == Settings(("http://other.test",), "other")


def test_an_empty_string_is_left_out(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CELLAR_URL", "")
    environment.setenv("CELLAR_API_KEY", "")
    assert settings("", "") == settings([], "") == settings(" ,", "") == Settings(("http://127.0.0.1:8080",), None)


@pytest.mark.parametrize("given", ["http://a, http://b,,http://a", ["http://a", "http://b", "http://a"]])
def test_several_servers_are_named_once_each(environment: pytest.MonkeyPatch, given: str | list[str]) -> None:
    assert settings(given).base_urls == ("http://a", "http://b")
    environment.setenv("CELLAR_URL", "http://c,http://d")
    assert settings().base_urls == ("http://c", "http://d")
    assert settings(given).base_urls == ("http://a", "http://b")

"""Which Redis is refused."""

import pytest
from redis.exceptions import ResponseError

from cellar_executor.errors import CannotServe, StoreUnavailable
from cellar_executor.store import Store
from cellar_executor.store.durability import insist_on_durability

SAFE = {"version": "6.2.14", "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always"}


def answer(store: Store, monkeypatch: pytest.MonkeyPatch, found: dict[str, str] | Exception) -> None:
    async def server_settings() -> dict[str, str]:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(store, "server_settings", server_settings)


async def test_the_servers_own_redis_is_safe(store: Store) -> None:
    await insist_on_durability(store, "always")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"version": "6.0.9"}, "6.2 or later"),
        ({"maxmemory-policy": "allkeys-lru"}, "noeviction"),
        ({"appendonly": "no"}, "appendonly yes"),
        ({"appendfsync": "everysec"}, "appendfsync always"),
    ],
)
async def test_a_redis_that_may_forget_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, setting: dict[str, str], said: str
) -> None:
    answer(store, monkeypatch, {**SAFE, **setting})
    with pytest.raises(CannotServe, match=said):
        await insist_on_durability(store, "always")


async def test_durability_may_be_given_up_but_not_the_sessions_themselves(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(store, monkeypatch, {**SAFE, "appendonly": "no"})
    await insist_on_durability(store, "off")
    answer(store, monkeypatch, {**SAFE, "maxmemory-policy": "volatile-ttl"})
    with pytest.raises(CannotServe, match="noeviction"):
        await insist_on_durability(store, "off")


async def test_a_redis_that_does_not_tell_is_taken_only_unasked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(store, monkeypatch, ResponseError("NOPERM"))
    await insist_on_durability(store, "off")
    with pytest.raises(CannotServe, match="does not tell"):
        await insist_on_durability(store, "always")


async def test_a_redis_that_does_not_answer_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(store, monkeypatch, StoreUnavailable("silent"))
    with pytest.raises(StoreUnavailable):
        await insist_on_durability(store, "off")

"""Which keys open, for whom, and how much each tenant may have."""

from collections.abc import Mapping

import pytest

from cellar_executor.errors import StoreUnavailable
from cellar_executor.store import Store
from cellar_executor.tenancy.tenants import ApiKey, OwnQuota, Quota, Tenants, key_digest

DEFAULT = Quota(sessions=10, running=5, cells_per_s=2.5)


class Kept:
    """What Redis has."""

    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.quotas: dict[str, OwnQuota] = {}
        self.away = False

    def add(self, name: str, key: str, tenant: str) -> None:
        self.keys[name] = ApiKey(digest=key_digest(key), tenant=tenant, created_at=0)

    async def api_keys(self) -> Mapping[str, ApiKey]:
        if self.away:
            raise StoreUnavailable("away")
        return dict(self.keys)

    async def own_quotas(self) -> Mapping[str, OwnQuota]:
        if self.away:
            raise StoreUnavailable("away")
        return dict(self.quotas)


async def test_keys_of_the_settings_and_of_redis_open_both() -> None:
    tenants, kept = Tenants({"given": "alice"}, DEFAULT), Kept()
    kept.add("bob1", "kept", "bob")
    assert tenants.tenant_of("kept") is None
    await tenants.refresh(kept)
    assert (tenants.tenant_of("given"), tenants.tenant_of("kept")) == ("alice", "bob")
    for wrong in ("", "Given", "kept ", key_digest("kept"), "\udcff"):
        assert tenants.tenant_of(wrong) is None


async def test_a_revoked_key_opens_no_more_and_the_others_do() -> None:
    tenants, kept = Tenants({}, DEFAULT), Kept()
    kept.add("old", "first", "alice")
    kept.add("new", "second", "alice")
    await tenants.refresh(kept)
    del kept.keys["old"]
    await tenants.refresh(kept)
    assert (tenants.tenant_of("first"), tenants.tenant_of("second")) == (None, "alice")


async def test_once_there_were_keys_one_is_always_asked() -> None:
    tenants, kept = Tenants({}, DEFAULT), Kept()
    await tenants.refresh(kept)
    assert not tenants.keys_required
    kept.add("only", "key", "alice")
    await tenants.refresh(kept)
    assert tenants.keys_required
    kept.keys.clear()
    await tenants.refresh(kept)
    assert tenants.keys_required
    assert Tenants({"given": "alice"}, DEFAULT).keys_required


async def test_with_redis_away_what_was_known_holds_on() -> None:
    tenants, kept = Tenants({}, DEFAULT), Kept()
    kept.add("a", "key", "alice")
    kept.quotas["alice"] = OwnQuota(running=1)
    await tenants.refresh(kept)
    kept.away = True
    with pytest.raises(StoreUnavailable):
        await tenants.refresh(kept)
    assert tenants.tenant_of("key") == "alice"
    assert tenants.quota("alice").running == 1


async def test_a_quota_of_its_own_leaves_the_rest_at_the_default() -> None:
    tenants, kept = Tenants({}, DEFAULT), Kept()
    kept.quotas["alice"] = OwnQuota(sessions=0, memory_mb=100)
    await tenants.refresh(kept)
    assert tenants.quota("alice") == Quota(sessions=0, running=5, cells_per_s=2.5, memory_mb=100)
    assert tenants.quota("bob") == DEFAULT


# --- in Redis -----------------------------------------------------------------------------------

ALICE = ApiKey(digest="d1", tenant="alice", created_at=12.5)


async def test_a_key_is_kept_once_under_its_name(store: Store) -> None:
    assert await store.add_key("a", ALICE, OwnQuota(sessions=3))
    other = ApiKey(digest="d2", tenant="mallory", created_at=13)
    assert not await store.add_key("a", other, OwnQuota(sessions=9))
    assert await store.api_keys() == {"a": ALICE}
    assert await store.own_quotas() == {"alice": OwnQuota(sessions=3)}


async def test_another_key_of_a_tenant_changes_of_its_quota_what_it_names(store: Store) -> None:
    await store.add_key("a", ALICE, OwnQuota(sessions=3, cells_per_s=0.1))
    await store.add_key("b", ALICE, OwnQuota())
    await store.add_key("c", ALICE, OwnQuota(sessions=100_000, running=2))
    assert await store.own_quotas() == {"alice": OwnQuota(sessions=100_000, running=2, cells_per_s=0.1)}


async def test_a_revoked_key_is_gone_and_its_tenant_s_quota_stays(store: Store) -> None:
    await store.add_key("a", ALICE, OwnQuota(sessions=3))
    assert await store.revoke_key("a")
    assert not await store.revoke_key("a")
    assert await store.api_keys() == {}
    assert await store.own_quotas() == {"alice": OwnQuota(sessions=3)}


async def test_what_cannot_be_read_opens_nothing_and_hides_nothing_else(store: Store) -> None:
    await store.add_key("a", ALICE, OwnQuota(sessions=3))
    await store._redis.hset("cellar:keys", "broken", "{")
    await store._redis.hset("cellar:quotas", "bob", '{"sessions": -1}')
    assert await store.api_keys() == {"a": ALICE}
    assert await store.own_quotas() == {"alice": OwnQuota(sessions=3)}

"""API keys, by their digests, and what tenants have of their own instead of the default quota."""

import logging
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from cellar_executor.store.connection import Connection, answered
from cellar_executor.tenancy.tenants import ApiKey, OwnQuota

M = TypeVar("M", bound=BaseModel)

KEYS = "cellar:keys"
QUOTAS = "cellar:quotas"

log = logging.getLogger(__name__)


class Keys(Connection):
    async def api_keys(self) -> Mapping[str, ApiKey]:
        """By name."""
        return _readable(ApiKey, await answered(self._redis.hgetall(KEYS)))

    async def own_quotas(self) -> Mapping[str, OwnQuota]:
        """By tenant. They outlive its keys, which may be changed one after the other."""
        return _readable(OwnQuota, await answered(self._redis.hgetall(QUOTAS)))

    async def add_key(self, name: str, key: ApiKey, quota: OwnQuota) -> bool:
        """Keep a key; what `quota` has changes its tenant's. False when there is a key of this name."""
        changes = quota.model_dump_json(exclude_none=True)
        return bool(
            await self._run("add_key", [KEYS, QUOTAS], name, key.model_dump_json(), key.tenant, changes) == "added"
        )

    async def revoke_key(self, name: str) -> bool:
        """False when there is no key of this name."""
        return bool(await answered(self._redis.hdel(KEYS, name)))


def _readable(model: type[M], rows: Mapping[str, str]) -> dict[str, M]:
    """Without what cannot be read: such a key opens nothing, and keeps none of the others from being revoked."""
    read = {}
    for name, text in rows.items():
        try:
            read[name] = model.model_validate_json(text)
        except ValidationError:
            log.error("a record of %s cannot be read: %s", model.__name__, name)
    return read

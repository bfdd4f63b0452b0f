"""Who may speak, and how much each may have: API keys and quotas."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field


class Quota(BaseModel):
    """How much of the executor one tenant may have at a time. None: no bound of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sessions: Annotated[int, Field(ge=0)]
    """On all servers together."""
    running: Annotated[int, Field(ge=1)]
    """Runs at once on each server; more wait in the tenant's queue."""
    cells_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """On each server."""
    memory_mb: Annotated[int, Field(ge=1)] | None = None
    """Memory limits of its kernels on each server, added up."""


class OwnQuota(BaseModel):
    """What one tenant's quota has instead of the server's default. None: the default."""

    model_config = ConfigDict(frozen=True)

    sessions: Annotated[int, Field(ge=0)] | None = None
    running: Annotated[int, Field(ge=1)] | None = None
    cells_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    memory_mb: Annotated[int, Field(ge=1)] | None = None


class ApiKey(BaseModel):
    """An API key as it is kept: by its digest, from which nobody finds the key."""

    model_config = ConfigDict(frozen=True)

    digest: str
    """`key_digest`"""
    tenant: str
    created_at: float
    """Unix time."""


class KeyStore(Protocol):
    async def api_keys(self) -> Mapping[str, ApiKey]: ...
    async def own_quotas(self) -> Mapping[str, OwnQuota]: ...


class Tenants:
    """The keys and quotas in force: those of the settings, and those that Redis had when last asked."""

    def __init__(self, api_keys: Mapping[str, str], default_quota: Quota) -> None:
        self._given = {key_digest(key): tenant for key, tenant in api_keys.items()}
        self._kept: Mapping[str, str] = {}
        self._default_quota = default_quota
        self._quotas: Mapping[str, Quota] = {}
        self._keys_required = bool(api_keys)

    @property
    def keys_required(self) -> bool:
        """Whether there are keys, or were since the start: who revokes the last one has not opened the door."""
        return self._keys_required

    def tenant_of(self, key: str) -> str | None:
        """Whose key this is, if it is one.

        Found by its digest: the time that takes tells of digests, from which no key can be made.
        """
        digest = key_digest(key)
        return self._given.get(digest) or self._kept.get(digest)

    def quota(self, tenant: str) -> Quota:
        return self._quotas.get(tenant, self._default_quota)

    async def refresh(self, store: KeyStore) -> None:
        """Take over what Redis has now. Raises `store_unavailable`: then what was known before holds on."""
        keys, quotas = await store.api_keys(), await store.own_quotas()
        self._kept = {key.digest: key.tenant for key in keys.values()}
        self._quotas = {
            tenant: self._default_quota.model_copy(update=own.model_dump(exclude_none=True))
            for tenant, own in quotas.items()
        }
        self._keys_required |= bool(keys)


def key_digest(key: str) -> str:
    """A plain SHA-256: a key is 256 random bits, so there is no guessable secret for a slow hash to stretch."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

"""Who owns the store, and whether it answers."""

from cellar_executor.store.connection import SERVER, Connection, answered


class Ownership(Connection):
    async def ping(self) -> None:
        await answered(self._redis.ping())

    async def eviction_policy(self) -> str:
        config = await answered(self._redis.config_get("maxmemory-policy"))
        return str(config["maxmemory-policy"])

    async def take_over(self) -> None:
        """Own the store, whoever had it: for a server that knows its predecessor is dead."""
        await answered(self._redis.set(SERVER, self.instance))

    async def renew_lease(self, lease_s: float) -> bool:
        """Own the store for `lease_s` from now. False while another server owns it."""
        lease_ms = round(lease_s * 1000)
        if await answered(self._redis.set(SERVER, self.instance, nx=True, px=lease_ms)):
            return True
        if await answered(self._redis.get(SERVER)) != self.instance:
            return False
        return bool(await answered(self._redis.pexpire(SERVER, lease_ms)))

    async def release_lease(self) -> None:
        if await answered(self._redis.get(SERVER)) == self.instance:
            await answered(self._redis.delete(SERVER))

"""Which servers live, which of them holds a session, and whether Redis can be trusted with it.

A server lives while it keeps the lease under its name (`lease.Lease` renews it). Sessions of a server whose lease has
ended are anybody's to take.
"""

from cellar_executor.errors import Moved
from cellar_executor.ids import Owned, Ref
from cellar_executor.records import SessionRecord
from cellar_executor.store.connection import INSTANCES, PROBE, answered
from cellar_executor.store.sessions import SessionRecords


class Ownership(SessionRecords):
    async def register(self, url: str, lease_s: float | None) -> None:
        """This server lives, at `url`: for so long, or for ever."""
        async with self._redis.pipeline() as pipe:
            pipe.set(self.lease_key, url, px=None if lease_s is None else round(lease_s * 1000))
            pipe.sadd(INSTANCES, self.instance)
            await answered(pipe.execute())

    async def unregister(self) -> None:
        """Its sessions are free at once."""
        async with self._redis.pipeline() as pipe:
            pipe.delete(self.lease_key)
            pipe.srem(INSTANCES, self.instance)
            await answered(pipe.execute())

    async def bury_others(self) -> None:
        """For a server that knows that all others on this Redis are dead."""
        others = set(await answered(self._redis.smembers(INSTANCES))) - {self.instance}
        if others:
            await answered(self._redis.delete(*(f"cellar:instance:{other}" for other in others)))
            await answered(self._redis.srem(INSTANCES, *others))

    async def instances(self) -> dict[str, str]:
        """The servers that live, this one included: id -> URL. Those that died are forgotten."""
        names = sorted(await answered(self._redis.smembers(INSTANCES)))
        urls = await answered(self._redis.mget([f"cellar:instance:{name}" for name in names])) if names else []
        found = dict(zip(names, urls, strict=True))
        dead = [name for name, url in found.items() if url is None]
        if dead:
            await answered(self._redis.srem(INSTANCES, *dead))
        return {name: url for name, url in found.items() if url is not None}

    async def elsewhere(self, ref: Ref) -> str | None:
        """URL of the live server that holds the session, if that is another one."""
        owner, url = ([*await self._run("whereabouts", [f"cellar:session:{ref}"]), None, None])[:2]
        return None if owner == self.instance else url

    async def take(self, ref: Ref) -> SessionRecord:
        """Own a session that no live server owns, or whose kernel this one has lost. A cell that ran in it is lost.

        Raises `session_not_found`, `Moved` while another server that lives owns it.
        """
        await self._session_script("take", ref, None)
        record = await self.session(ref)
        if record.owner != self.instance:
            raise Moved
        return record

    async def release(self, owned: Owned) -> None:
        """Free a session whose kernel is closed. Raises `session_not_found`, `Moved`."""
        await self._script("release", owned)

    async def probe(self) -> None:
        """Raises `StoreUnavailable` unless Redis takes a write."""
        await answered(self._redis.set(PROBE, 1, ex=60))

    async def server_settings(self) -> dict[str, str]:
        """Of Redis: its version, and how it keeps what it is told. Raises `ResponseError` where it does not tell."""
        settings = {"version": str((await answered(self._redis.info("server")))["redis_version"])}
        for name in ("maxmemory-policy", "appendonly", "appendfsync"):
            settings |= await answered(self._redis.config_get(name))
        return settings

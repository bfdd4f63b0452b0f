"""First answers to idempotency keys."""

from cellar_executor.records import Claim
from cellar_executor.store.connection import Connection


class Answers(Connection):
    async def claim(self, name: str, digest: str, nonce: str, *, to_settle: bool = True) -> Claim:
        """Claim a key for the request with this digest. Raises `idempotency_mismatch`.

        `to_settle`: until its answer is kept, or this server is gone, other servers leave the key to this one.
        """
        instance = self.instance if to_settle else ""
        reply = await self._run("claim", self._answer(name), instance, digest, nonce, self._quotas.answer_ttl_s)
        if reply[0] == "answered":
            return Claim("answered", reply[1], int(reply[2]), reply[3])
        return Claim(*reply)

    async def settle(self, name: str, status: int, body: str) -> None:
        """Raises `Moved` when another server has claimed the key, since this one was gone for too long."""
        await self._run("settle", self._answer(name), self.instance, status, body, self._quotas.answer_ttl_s)

    async def unclaim(self, name: str, *, forget: bool) -> None:
        """This server does not answer the key, if it is the one that claimed it. `forget`: as if nobody ever had."""
        await self._run("unclaim", self._answer(name), self.instance, "forget" if forget else "leave")

    def _answer(self, name: str) -> list[str]:
        return [f"cellar:answer:{name}", self.lease_key]

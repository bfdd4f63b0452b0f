"""First answers to idempotency keys."""

from cellar_executor.records import Claim
from cellar_executor.store.connection import Connection, answered


class Answers(Connection):
    async def claim(self, name: str, digest: str, nonce: str) -> Claim:
        reply = await self._answer_script("claim", name, digest, nonce, self._quotas.answer_ttl_s)
        if reply[0] == "answered":
            return Claim("answered", reply[1], int(reply[2]), reply[3])
        return Claim(*reply)

    async def settle(self, name: str, status: int, body: str) -> None:
        await self._answer_script("settle", name, status, body, self._quotas.answer_ttl_s)

    async def unclaim(self, name: str) -> None:
        await answered(self._redis.delete(f"cellar:answer:{name}"))

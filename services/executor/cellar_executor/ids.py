"""Names of things: who owns a session, and how ids the client did not choose are made."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import NamedTuple, Self

SERVER_MADE = re.compile(r"^s-[0-9a-f]{32}$")


class Ref(NamedTuple):
    """A session under its tenant: two tenants may use the same id and never see each other."""

    tenant: str
    session_id: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.session_id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(*text.split("/", 1))


class Owned(NamedTuple):
    """A session as its owner holds it. Nothing is done for it once the session was taken over, at a later epoch."""

    ref: Ref
    epoch: int


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids one request gives to what it makes. The same nonce gives the same ids, so that a retry finds them."""

    nonce: str
    resumed: bool = False
    """An earlier request with the same key was never answered; what it did is found under these ids."""

    @classmethod
    def fresh(cls) -> Self:
        return cls(secrets.token_hex(16))

    def session(self) -> str:
        return "s-" + self._name("session")

    def fork(self, position: int) -> str:
        return "s-" + self._name(f"fork {position}")

    def run(self) -> str:
        return "r-" + self._name("run")

    def cell(self, position: int) -> str:
        return "c-" + self._name(f"cell {position}")

    def _name(self, what: str) -> str:
        return hashlib.blake2b(f"{self.nonce} {what}".encode(), digest_size=16).hexdigest()


def is_server_made(session_id: str) -> bool:
    """Ids of this form are 128 random bits and are never asked for by a client, so they need no lasting tombstone."""
    return SERVER_MADE.match(session_id) is not None

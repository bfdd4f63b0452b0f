"""What is measured, whoever offers it: sessions that run cells."""

from dataclasses import dataclass
from typing import Protocol, Self

LIBRARIES = "import numpy, sympy"


class OpenSession(Protocol):
    def run(self, code: str) -> str:
        """What the cell printed. Raises when it failed."""
        ...

    def close(self) -> None: ...


class Side(Protocol):
    name: str
    starts_quickly: bool
    """Whether a session starts in milliseconds, so that many can be started in a round."""

    def open(self) -> OpenSession: ...

    def execute(self, code: str) -> None:
        """One cell in a session of its own, the session's end included."""
        ...

    def pids(self) -> list[int]:
        """The processes that hold its sessions, and those that they need."""
        ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each measurement does in a round."""

    warm_cells: int = 100
    sessions: int = 100
    slow_sessions: int = 4
    clients: int = 4
    idle_sessions: int = 50
    crowd: int = 1000
    crowd_cells: int = 200
    neighbour_cells: int = 200

    @classmethod
    def quick(cls) -> Self:
        return cls(10, 10, 2, 4, 5, 100, 20, 20)

    def sessions_of(self, side: Side) -> int:
        return self.sessions if side.starts_quickly else self.slow_sessions

"""What a session has used of the host so far, as the host counts it: the cell has no word in this."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    oom_kills: int = 0
    """How many of its processes the memory limit has killed."""
    cpu_s: float | None = None
    """CPU time of all its processes; None where nobody counts it."""
    peak_memory_bytes: int | None = None
    """The most memory it held at any time; None where nobody counts it."""

    def cpu_since(self, before: "Usage") -> float | None:
        return None if self.cpu_s is None or before.cpu_s is None else self.cpu_s - before.cpu_s

"""The host's uids that jails run as, where the server is root: kernel quotas that count by uid then cross no jail."""

from bisect import bisect_left, insort

HOST_UID_BASE = 100_000


class HostUids:
    """Hands out ranges of uids that do not overlap, the lowest that are free first."""

    def __init__(self, base: int = HOST_UID_BASE) -> None:
        self._base = base
        self._taken: list[tuple[int, int]] = []
        """First and one past the last, sorted."""

    def take(self, count: int = 1) -> int:
        """The first of `count` uids in a row."""
        first = self._base
        for start, end in self._taken:
            if start - first >= count:
                break
            first = end
        insort(self._taken, (first, first + count))
        return first

    def give_back(self, first: int) -> None:
        del self._taken[bisect_left(self._taken, (first, 0))]

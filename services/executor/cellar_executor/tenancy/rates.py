"""How fast a tenant may hand in cells: a token bucket for each."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from cellar_executor.errors import Refusal
from cellar_executor.tenancy.tenants import Tenants

ROUNDING = 1e-6
"""Of a cell: whoever waits exactly as long as was said is let in, whatever floats make of it."""


@dataclass(slots=True)
class _Bucket:
    cells: float
    """To be had at time `at`; below zero after a request with more cells than a full bucket."""
    at: float


class Rates:
    """Cells per second of each tenant with such a quota, on this server."""

    def __init__(self, tenants: Tenants, clock: Callable[[], float] = time.monotonic) -> None:
        self._tenants = tenants
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def charge(self, tenant: str, cells: int) -> None:
        """Count cells that are handed in now, all or none. Raises `quota_exceeded`, with the time until they may be.

        A bucket holds what comes in a second. A request with more cells than that is let in when the bucket is full, or
        it never could be, and leaves a debt.
        """
        rate = self._tenants.quota(tenant).cells_per_s
        if rate is None or cells == 0:
            return
        full, now = rate, self._clock()
        bucket = self._buckets.setdefault(tenant, _Bucket(full, now))
        bucket.cells = min(full, bucket.cells + (now - bucket.at) * rate)
        bucket.at = now
        missing = min(cells, full) - bucket.cells
        if missing > ROUNDING:
            raise Refusal(
                "quota_exceeded", f"more than {rate:g} cells per second of this tenant", retry_after_s=missing / rate
            )
        bucket.cells -= cells

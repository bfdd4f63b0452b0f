"""The lease by which a server on a shared Redis holds its sessions, and the end of its kernels before the lease's.

A thread with a connection of its own renews it, so that neither a busy event loop nor a full connection pool lets it
lapse. After each renewal the kernels' end is put off (`fence`), to a moment before the lease can end: whatever keeps
this server from renewing, be it Redis, the network, or a stop of the process, its kernels are dead when another server
may take its sessions over. Leases are timed by Redis, the kernels' end by this host's clock since boot; the two are
never compared, only spans of time are.
"""

import logging
import threading
import time
from collections.abc import Callable

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

RENEWALS = 4
"""In the time of a lease."""
MARGIN, LEAST_MARGIN_S = 0.2, 0.5
"""Kernels begin to end so much before a lease does: a part of it, at least the time that many of them take to die."""

log = logging.getLogger(__name__)


class Lease:
    """Open for as long as the server serves; register before (`store.Ownership.register`)."""

    def __init__(
        self,
        redis_url: str,
        key: str,
        url: str,
        lease_s: float,
        fence: Callable[[float], None],
        on_lapse: Callable[[], object],
    ) -> None:
        """`fence` kills all kernels at that time (CLOCK_BOOTTIME); `on_lapse` is called when the lease had ended.

        Both are called in the lease's own thread.
        """
        self._key = key
        self._url = url
        self._lease_s = lease_s
        self._fence = fence
        self._on_lapse = on_lapse
        self._pause_s = lease_s / RENEWALS
        self._redis = Redis.from_url(
            redis_url,
            socket_timeout=self._pause_s,
            socket_connect_timeout=self._pause_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.renewed_at = now()

    @property
    def age_s(self) -> float:
        """Time since the lease was last renewed."""
        return now() - self.renewed_at

    def open(self) -> None:
        """Raises `RedisError` when even the first renewal fails."""
        self._renew()
        self._thread.start()

    def close(self) -> None:
        """The kernels are closed: nothing renews the lease from now on."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._redis.close()

    def _keep(self) -> None:
        while not self._stopping.wait(self._pause_s):
            try:
                self._renew()
            except (RedisError, OSError) as error:
                log.warning("the lease could not be renewed: %s", error)

    def _renew(self) -> None:
        asked = now()
        if not self._set(only_if_there=True):
            log.error("the lease had ended: all kernels are closed")
            self._fence(0)
            self._on_lapse()
            asked = now()
            self._set(only_if_there=False)
        self._fence(asked + self._lease_s - max(MARGIN * self._lease_s, LEAST_MARGIN_S))
        self.renewed_at = asked

    def _set(self, *, only_if_there: bool) -> bool:
        return bool(self._redis.set(self._key, self._url, xx=only_if_there, px=round(self._lease_s * 1000)))


def now() -> float:
    """A clock that never jumps and counts the time that the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)

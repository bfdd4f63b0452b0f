"""When kernels have to end, and what a server does that finds its lease gone. Against a real Redis."""

import time
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import RedisError

from cellar_executor.store.lease import Lease, now

LEASE_S = 2.0
KEY = "cellar:instance:one"


class Server:
    """What the lease tells its server."""

    def __init__(self) -> None:
        self.fences: list[float] = []
        self.lapses = 0

    def lapse(self) -> None:
        self.lapses += 1


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
        yield redis


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def lease(redis_url: str, redis: Redis, server: Server) -> Iterator[Lease]:
    lease = Lease(redis_url, KEY, "http://one", LEASE_S, server.fences.append, server.lapse)
    yield lease
    lease.close()


def test_kernels_end_before_the_lease_does(lease: Lease, redis: Redis, server: Server) -> None:
    redis.set(KEY, "http://one", px=2000)
    before = now()
    lease.open()
    after = now()
    assert before < server.fences[0] < after + 0.9 * LEASE_S
    assert 0 < redis.pttl(KEY) <= 1000 * LEASE_S
    assert server.lapses == 0


def test_it_is_renewed_for_as_long_as_it_is_open(lease: Lease, redis: Redis, server: Server) -> None:
    redis.set(KEY, "http://one", px=2000)
    lease.open()
    time.sleep(1.5 * LEASE_S)
    assert redis.get(KEY) == b"http://one"
    assert lease.age_s < LEASE_S
    assert server.fences == sorted(server.fences)
    lease.close()
    renewals = len(server.fences)
    time.sleep(0.5 * LEASE_S)
    assert len(server.fences) == renewals


def test_a_lease_that_ended_ends_all_kernels_before_there_is_a_new_one(
    lease: Lease, redis: Redis, server: Server
) -> None:
    redis.set(KEY, "http://one", px=2000)
    lease.open()
    redis.delete(KEY)
    deadline = time.monotonic() + 5
    while server.lapses == 0 or redis.get(KEY) is None or server.fences[-1] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed = server.fences.index(0)
    assert server.fences[killed + 1] > now()
    assert server.lapses == 1


def test_without_redis_the_end_of_the_kernels_is_not_put_off(redis_url: str, server: Server) -> None:
    lease = Lease("redis://127.0.0.1:1", KEY, "http://one", LEASE_S, server.fences.append, server.lapse)
    with pytest.raises(RedisError):
        lease.open()
    assert (server.fences, server.lapses) == ([], 0)
    lease.close()

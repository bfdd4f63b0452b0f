"""`cellar-executor keys` on a Redis that runs, and on data folders with and without one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner, Result

from cellar_executor.cli import main
from cellar_executor.redis_server import redis_server
from cellar_executor.settings import find_binary
from cellar_executor.tenancy.tenants import key_digest


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        redis.flushall()
        yield redis


def keys(*words: str) -> Result:
    return CliRunner().invoke(main, ["keys", *words])


def test_a_key_is_printed_alone_and_only_its_digest_is_kept(redis: Redis, redis_url: str) -> None:
    made = keys("add", "alice", "--redis-url", redis_url)
    assert made.exit_code == 0
    key = made.stdout.strip()
    assert made.stdout == f"{key}\n"
    assert key.startswith("ck_")
    assert len(key) >= 3 + 256 / 6
    assert key not in made.stderr
    kept = redis.hgetall("cellar:keys")
    assert list(kept) == ["alice"]
    assert json.loads(kept["alice"])["digest"] == key_digest(key)
    assert key not in str(kept)


def test_no_two_keys_are_alike(redis: Redis, redis_url: str) -> None:
    made = {keys("add", f"k{position}", "--redis-url", redis_url).stdout for position in range(3)}
    assert len(made) == 3


def test_keys_are_told_by_name_and_their_digests_are_not(redis: Redis, redis_url: str) -> None:
    place = ("--redis-url", redis_url)
    made = keys("add", "alice", *place, "--sessions", "3", "--cells-per-s", "0.5").stdout.strip()
    keys("add", "bob", "--tenant", "team", *place)
    table, listed = keys("list", *place).stdout, keys("list", "--json", *place).stdout
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [["alice", "alice"], ["bob", "team"]]
    alice, bob = json.loads(listed)
    assert set(alice) == {"name", "tenant", "created_at", "quota"}
    assert alice["quota"] == {"sessions": 3, "running": None, "cells_per_s": 0.5, "memory_mb": None}
    assert bob["tenant"] == "team"
    for secret in (made, key_digest(made)):
        assert secret not in table + listed


def test_without_keys_the_list_has_only_its_head(redis: Redis, redis_url: str) -> None:
    assert keys("list", "--redis-url", redis_url).stdout.split()[:2] == ["name", "tenant"]
    assert keys("list", "--json", "--redis-url", redis_url).stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "alice"), "already"),
        (("add", "new", "--running", "0"), "running"),
        (("add", "new", "--cells-per-s", "nan"), "cells_per_s"),
        (("add", "a/b"), "letters"),
        (("add", "new", "--tenant", "a b"), "letters"),
        (("revoke", "nobody"), "no key nobody"),
        (("list", "--redis-url", "unix:///nonexistent"), "Redis does not answer"),
        (("list", "--redis-url", "http://elsewhere"), "redis://"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(
    redis: Redis, redis_url: str, words: tuple[str, ...], said: str
) -> None:
    keys("add", "alice", "--redis-url", redis_url)
    before = redis.hgetall("cellar:keys"), redis.hgetall("cellar:quotas")
    done = keys(*words, *([] if "--redis-url" in words else ["--redis-url", redis_url]))
    assert done.exit_code in (1, 2)
    assert done.stdout == ""
    assert said in done.stderr
    assert (redis.hgetall("cellar:keys"), redis.hgetall("cellar:quotas")) == before


def test_a_data_folder_without_a_server_has_a_redis_for_the_moment(tmp_path: Path) -> None:
    place = ("--data-dir", str(tmp_path / "data"))
    for words in (("list",), ("revoke", "alice")):  # which make no folder
        done = keys(*words, *place)
        assert (done.exit_code, done.stdout) == (1, "")
    assert not (tmp_path / "data").exists()
    assert keys("add", "alice", *place).exit_code == 0
    assert [key["name"] for key in json.loads(keys("list", "--json", *place).stdout)] == ["alice"]
    assert keys("revoke", "alice", *place).exit_code == 0
    assert keys("list", "--json", *place).stdout == "[]\n"


def test_a_data_folder_with_a_server_is_asked_through_its_redis(tmp_path: Path) -> None:
    binary = find_binary("redis-server")
    assert binary is not None
    with redis_server(binary, tmp_path) as redis, Redis.from_url(redis.url) as client:
        assert keys("add", "alice", "--data-dir", str(tmp_path)).exit_code == 0
        assert client.hexists("cellar:keys", "alice")
        redis.stop()  # the server lives and its Redis does not: nothing is started beside it
        refused = keys("list", "--data-dir", str(tmp_path))
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "another server" in refused.stderr

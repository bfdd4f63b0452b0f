"""The data folder belongs to one server at a time, and its Redis answers to nobody else."""

import os
import signal
from pathlib import Path

import pytest

from cellar_executor.redis_server import RedisError, redis_server
from cellar_executor.settings import find_binary


@pytest.fixture
def binary() -> Path:
    found = find_binary("redis-server")
    assert found is not None
    return found


def test_a_folder_in_use_is_refused_and_free_again_afterwards(binary: Path, tmp_path: Path) -> None:
    with (
        redis_server(binary, tmp_path),
        pytest.raises(RedisError, match="another server"),
        redis_server(binary, tmp_path),
    ):
        pass
    with redis_server(binary, tmp_path):
        pass


def test_the_socket_is_private_and_gone_afterwards(binary: Path, tmp_path: Path) -> None:
    with redis_server(binary, tmp_path) as redis:
        socket = Path(redis.url.removeprefix("unix://"))
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert socket.is_socket()
    assert not socket.parent.exists()


def test_what_a_crash_left_is_cleared_at_the_next_start(binary: Path, tmp_path: Path) -> None:
    litter = tmp_path / "litter"
    litter.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "socket").symlink_to(litter)
    with redis_server(binary, tmp_path / "data"):
        assert not litter.exists()


def test_a_redis_that_died_is_started_again(binary: Path, tmp_path: Path) -> None:
    with redis_server(binary, tmp_path) as redis:
        redis.ensure_running()
        process = redis._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        redis.ensure_running()
        redis.wait_until_ready()


def test_a_binary_that_is_no_redis_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RedisError, match="does not start"), redis_server(Path("/bin/false"), tmp_path):
        pass

"""The kernel's parts that need no process of their own; all others: test_jailed_kernel, test_supervisor."""

import os
import random
import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from cellar_executor.kernels import kernel_main
from cellar_executor.kernels.framing import frame
from cellar_executor.kernels.protocol import request


@pytest.fixture
def untouched() -> Iterator[None]:
    state, finders = random.getstate(), list(sys.meta_path)
    yield
    random.setstate(state)
    sys.meta_path[:] = finders


def ask(op: str, **arguments: object) -> bytes:
    return frame(request(op, "n", **arguments))


@pytest.mark.usefixtures("untouched")
def test_a_seed_repeats_and_none_does_not() -> None:
    drawn = []
    for seed in (5, 5, None, None):
        kernel_main.reseed(seed)
        drawn.append(random.random())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.usefixtures("untouched")
def test_only_the_last_seed_waits_for_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = kernel_main.beside("kernel_seed")
    monkeypatch.setattr(seeds, "SEEDED_MODULES", ("random", "not.loaded"))
    for seed, waiting in ((1, 1), (2, 1), (None, 0)):
        kernel_main.reseed(seed)
        assert sum(isinstance(finder, seeds.SeedOnImport) for finder in sys.meta_path) == waiting


def test_a_request_comes_whole_with_its_fds_and_leaves_the_next_one_alone() -> None:
    ours, theirs = socket.socketpair()
    channel = kernel_main.Channel(theirs.detach())
    big = "x" * 100_000
    read_end, write_end = os.pipe()

    def send() -> None:
        sent = socket.send_fds(ours, [data := ask("run", code=big)], [write_end])
        ours.sendall(data[sent:] + ask("retire"))

    sender = threading.Thread(target=send)
    sender.start()
    received, fds = channel.receive() or ({}, ())
    assert received == {"nonce": "n", "op": "run", "code": big}
    os.write(fds[0], b"through")
    assert os.read(read_end, 7) == b"through"
    assert channel.receive() == ({"nonce": "n", "op": "retire"}, [])
    sender.join()
    ours.close()
    assert channel.receive() is None
    channel._leave()
    for fd in (*fds, read_end, write_end):
        os.close(fd)


def test_a_request_that_is_too_long_ends_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_main, "MAX_REQUEST_BYTES", 10)
    ours, theirs = socket.socketpair()
    channel = kernel_main.Channel(theirs.detach())
    ours.sendall(ask("run", code="long"))
    assert channel.receive() is None
    channel._leave()
    ours.close()


@pytest.mark.parametrize("name", ["bytearray", "json"])
def test_a_request_that_does_not_fit_into_memory_keeps_its_name_and_leaves_the_next_one_alone(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ours, theirs = socket.socketpair()
    channel = kernel_main.Channel(theirs.detach())
    ours.sendall(ask("put", data="x" * 10_000) + ask("ping"))
    with monkeypatch.context() as patch:
        patch.setattr(kernel_main, name, Full(), raising=False)
        received, _ = channel.receive() or ({}, ())
    assert received == {"nonce": "n", "op": "put"}
    with pytest.raises(MemoryError):
        received["data"]
    assert channel.receive() == ({"nonce": "n", "op": "ping"}, [])
    channel._leave()
    ours.close()


class Full:
    """Memory, to all that needs more than the head of a request."""

    def __call__(self, content: int | bytes) -> bytearray:
        if isinstance(content, int):
            raise MemoryError
        return bytearray(content)

    def loads(self, text: bytearray) -> None:
        raise MemoryError


def test_the_longest_cell_fits_a_request() -> None:
    for letter in "\0\ud800\U0001f600":
        assert len(request("run", "n" * 16, code=letter * 10**6, stdin=letter * 10**6)) < kernel_main.MAX_REQUEST_BYTES


@pytest.mark.parametrize("text", ["x" * 10, "é\ud800\0", "😀" * 200_000])
def test_what_is_said_is_bounded_and_encodable(text: str) -> None:
    said = kernel_main.sendable(text)
    assert len(said.encode()) <= 4 * kernel_main.MAX_TEXT_CHARS + 100

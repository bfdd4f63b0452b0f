"""The kernel's parts that need no process of their own; all others: test_jailed_kernel, test_supervisor."""

import io
import json
import os
import random
import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from cellar_executor.kernels import kernel_main


@pytest.fixture
def untouched() -> Iterator[None]:
    state, finders = random.getstate(), list(sys.meta_path)
    yield
    random.setstate(state)
    sys.meta_path[:] = finders


def ask(**request: object) -> bytes:
    payload = json.dumps(request).encode()
    return len(payload).to_bytes(4, "big") + payload


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
        sent = socket.send_fds(ours, [data := ask(op="run", code=big)], [write_end])
        ours.sendall(data[sent:] + ask(op="retire"))

    sender = threading.Thread(target=send)
    sender.start()
    request, fds = channel.receive() or ({}, ())
    assert request["code"] == big
    os.write(fds[0], b"through")
    assert os.read(read_end, 7) == b"through"
    assert channel.receive() == ({"op": "retire"}, [])
    sender.join()
    ours.close()
    assert channel.receive() is None
    channel._leave()
    kernel_main.close_all([*fds, read_end, write_end])


def test_a_request_that_is_too_long_ends_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_main, "MAX_REQUEST_BYTES", 10)
    ours, theirs = socket.socketpair()
    channel = kernel_main.Channel(theirs.detach())
    ours.sendall((11).to_bytes(4, "big"))
    assert channel.receive() is None
    channel._leave()
    ours.close()


def test_a_thread_that_was_there_before_writes_nowhere_and_others_do() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), write_through=True)
    go, done = threading.Event(), threading.Event()

    def late() -> None:
        go.wait()
        stream.writelines(["late", "late"])
        done.set()

    threading.Thread(target=late).start()
    kernel_main.mute_leftover_threads([stream])
    go.set()
    done.wait()
    fresh = threading.Thread(target=print, args=("fresh",), kwargs={"file": stream})
    fresh.start()
    fresh.join()
    print("main", file=stream)
    assert stream.buffer.getvalue() == b"fresh\nmain\n"


@pytest.mark.parametrize("text", ["x" * 10, "é\ud800\0", "😀" * 200_000])
def test_what_is_said_is_bounded_and_encodable(text: str) -> None:
    said = kernel_main.sendable(text)
    assert len(said.encode()) <= 4 * kernel_main.MAX_TEXT_CHARS + 100

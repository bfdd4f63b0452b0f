import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_executor.kernels.output import LiveText, OutputRing, OutputStream

MARKER_ROOM = 60


@given(chunks=st.lists(st.binary(max_size=40)), limit=st.integers(min_value=2, max_value=100))
def test_output_within_the_limit_is_whole_and_beyond_it_keeps_both_ends(chunks: list[bytes], limit: int) -> None:
    ring = OutputRing(limit)
    for chunk in chunks:
        ring.feed(chunk)
    data = b"".join(chunks)
    assert ring.cut == max(0, len(data) - limit)
    if ring.cut == 0:
        assert ring.text() == data.decode("utf-8", "backslashreplace")
    else:
        assert f"[{ring.cut} bytes cut]" in ring.text()


@given(text=st.text(min_size=60, max_size=200), limit=st.integers(min_value=16, max_value=40))
def test_a_cut_goes_through_no_character(text: str, limit: int) -> None:
    ring = OutputRing(limit)
    ring.feed(text.encode())
    head, _, tail = ring.text().partition("\n... [")
    tail = tail.partition("] ...\n")[2]
    assert text.startswith(head)
    assert text.endswith(tail)
    assert limit - 6 <= len(head.encode()) + len(tail.encode()) <= limit


CHARACTERS = st.one_of(st.binary(max_size=12), st.text(max_size=6).map(str.encode))


@given(chunks=st.lists(CHARACTERS, max_size=12), limit=st.integers(min_value=2, max_value=100))
def test_what_is_told_live_is_what_the_cell_says_in_the_end(chunks: list[bytes], limit: int) -> None:
    ring, told = OutputRing(limit), list[str]()
    live = LiveText(limit, told.append)
    for chunk in chunks:
        ring.feed(chunk)
        live.feed(chunk)
    live.end()
    text, first = "".join(told), b"".join(chunks)[:limit]
    if ring.cut == 0:
        assert text == ring.text()
    else:
        assert first.decode("utf-8", "backslashreplace").startswith(text)
        assert len(text.encode()) > limit - 4
    assert "" not in told


@given(data=st.binary(max_size=60))
def test_what_is_told_live_never_has_to_be_taken_back(data: bytes) -> None:
    """At each moment: the beginning of what the cell will say, whatever is written next."""
    ring, told = OutputRing(100), ""

    def tell(text: str) -> None:
        nonlocal told
        told += text

    live = LiveText(100, tell)
    for byte in data:
        ring.feed(bytes([byte]))
        live.feed(bytes([byte]))
        assert data.decode("utf-8", "backslashreplace").startswith(told)
    live.end()
    assert told == ring.text()


async def test_output_is_told_while_the_cell_runs_and_not_between_cells() -> None:
    read_end, write_end = os.pipe()
    stream, told, first = OutputStream(read_end, 8), list[str](), asyncio.get_running_loop().create_future()

    def tell(text: str) -> None:
        told.append(text)
        if not first.done():
            first.set_result(text)

    stream.begin(tell)
    os.write(write_end, b"one\xe2\x82")
    assert await first == "one"
    os.write(write_end, b"\xac!")
    assert stream.finish().text() == "one\N{EURO SIGN}!"
    assert "".join(told) == "one\N{EURO SIGN}!"
    os.write(write_end, b"late")
    await asyncio.sleep(0.01)
    stream.begin()
    os.write(write_end, b"unheard")
    assert stream.finish().text() == "unheard"
    stream.begin(told.append)
    os.write(write_end, b"\xe2")
    stream.finish()
    assert told.pop() == "\\xe2"
    stream.begin(told.append)
    os.write(write_end, b"12345678 and more")
    stream.close()
    stream.finish()
    assert "".join(told) == "one\N{EURO SIGN}!12345678"
    os.close(write_end)


def test_a_flood_is_kept_in_bounded_memory() -> None:
    ring = OutputRing(1000)
    for _ in range(1000):
        ring.feed(b"x" * 10_000)
    assert (ring.total, ring.cut) == (10_000_000, 9_999_000)
    assert len(ring.text()) < 1000 + MARKER_ROOM


async def test_what_is_written_between_cells_belongs_to_none() -> None:
    read_end, write_end = os.pipe()
    stream = OutputStream(read_end, 100)
    stream.begin()
    os.write(write_end, b"first")
    assert stream.finish().text() == "first"
    os.write(write_end, b"late")
    await asyncio.sleep(0.01)
    os.write(write_end, b"later")
    stream.begin()
    os.write(write_end, b"second")
    assert stream.finish().text() == "second"
    stream.close()
    os.close(write_end)


async def test_who_holds_the_pipe_of_an_earlier_cell_reaches_nobody() -> None:
    read_end, old_end = os.pipe()
    stream = OutputStream(read_end, 100)
    new_end = stream.renew()
    stream.begin()
    with pytest.raises(BrokenPipeError):
        os.write(old_end, b"late")
    os.write(new_end, b"mine")
    await asyncio.sleep(0.01)
    assert stream.finish().text() == "mine"
    stream.close()
    os.close(old_end)
    os.close(new_end)


async def test_more_than_a_pipe_holds_is_drained_while_the_cell_runs() -> None:
    read_end, write_end = os.pipe()
    stream = OutputStream(read_end, 10 << 20)
    stream.begin()
    await asyncio.to_thread(write_all, write_end, b"x" * (5 << 20))
    assert stream.finish().total == 5 << 20
    stream.close()
    os.close(write_end)


async def test_between_cells_a_flood_waits_in_the_pipe() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    stream = OutputStream(read_end, 100)
    written = 0
    for _ in range(50):
        try:
            written += os.write(write_end, b"x" * 65536)
        except BlockingIOError:
            await asyncio.sleep(0)
    assert written <= 65536
    stream.close()
    os.close(write_end)


async def test_what_a_dead_writer_left_in_the_pipe_is_kept() -> None:
    read_end, write_end = os.pipe()
    stream = OutputStream(read_end, 100)
    stream.begin()
    os.write(write_end, b"last words")
    os.close(write_end)
    stream.close()
    assert stream.finish().text() == "last words"


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

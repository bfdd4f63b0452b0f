import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_executor.kernels.framing import FrameDecoder, FrameTooLong, frame


@given(payloads=st.lists(st.binary(max_size=50)), cuts=st.lists(st.integers(min_value=0, max_value=400)))
def test_payloads_come_out_as_they_went_in_however_the_stream_is_cut(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(frame, payloads))
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    decoder = FrameDecoder(max_bytes=50)
    received = [
        payload for start, end in zip(bounds, bounds[1:], strict=False) for payload in decoder.feed(stream[start:end])
    ]
    assert received == payloads


def test_a_frame_that_is_too_long_is_refused_by_its_header_alone() -> None:
    with pytest.raises(FrameTooLong, match="51"):
        list(FrameDecoder(max_bytes=50).feed((51).to_bytes(4, "big")))


def test_a_frame_of_exactly_the_limit_is_accepted() -> None:
    assert list(FrameDecoder(max_bytes=50).feed(frame(b"x" * 50))) == [b"x" * 50]

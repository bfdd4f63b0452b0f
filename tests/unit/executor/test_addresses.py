"""Where a server says that it is reached."""

import pytest

from cellar_executor.addresses import listen, url_for_others, url_of


@pytest.mark.parametrize(
    ("host", "redis_url", "reached_at"),
    [
        ("127.0.0.1", "redis://127.0.0.1:6379", "http://127.0.0.1:"),
        ("127.0.0.1", "unix:///redis.sock", "http://127.0.0.1:"),
        ("0.0.0.0", "redis://user:secret@127.0.0.1/0", "http://127.0.0.1:"),
        ("0.0.0.0", "unix:///redis.sock", "http://127.0.0.1:"),
    ],
)
def test_a_server_that_listens_everywhere_is_reached_where_it_reaches_redis(
    host: str, redis_url: str, reached_at: str
) -> None:
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        assert url_for_others(listener, redis_url) == f"{reached_at}{port}"
        assert url_of(listener) == f"http://{host}:{port}"


def test_an_address_of_version_6_stands_in_brackets() -> None:
    try:
        listener = listen("::1", 0)
    except OSError:
        pytest.skip("this host has no IPv6")
    with listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"

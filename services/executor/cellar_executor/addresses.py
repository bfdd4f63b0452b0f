"""Where this server listens, and where the others on its Redis reach it."""

import ipaddress
import socket
from urllib.parse import urlsplit


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def url_of(listener: socket.socket) -> str:
    return _url(*listener.getsockname()[:2])


def url_for_others(listener: socket.socket, redis_url: str) -> str:
    """One that listens everywhere is reached at the address by which it reaches Redis."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = _address_towards(redis_url)
    return _url(host, port)


def _address_towards(url: str) -> str:
    to = urlsplit(url)
    if to.hostname is None:  # a unix socket: all of them are on this machine
        return "127.0.0.1"
    family, kind, protocol, _, address = socket.getaddrinfo(to.hostname, to.port or 6379, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing: it only looks up the way
        return str(probe.getsockname()[0])


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

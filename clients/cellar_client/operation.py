"""An operation is one call of the contract as a value: what to send, and how to read what comes back.

Everything here is pure, so the async and the sync client share it; they differ only in how they wait.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from cellar_client.errors import CellarError, ConnectionFailed, InvalidReply, from_problem
from cellar_client.schemas import Problem, Request
from cellar_client.transport import HttpReply, HttpRequest

T = TypeVar("T")

_GATEWAY_STATUSES = (502, 503, 504)


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    method: Literal["GET", "POST", "DELETE"]
    path: str
    parse: Callable[[bytes], T]
    """Reads the body of a good reply; raises `ValueError` when it is not of the contract."""
    body: Request | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    silence_s: float | None = None
    """Longest silence of the server before the client asks again; None is the client's `timeout_s`."""
    also_good: int | None = None
    """A status beside 2xx whose body `parse` reads."""

    def request(self, idempotency_key: str) -> HttpRequest:
        """The request, the same for every try. GET and DELETE need no key: repeating them changes nothing."""
        headers = {"Idempotency-Key": idempotency_key} if self.method == "POST" else {}
        content = b""
        if self.body is not None:
            headers["Content-Type"] = "application/json"
            content = self.body.model_dump_json(exclude_defaults=True).encode()
        return HttpRequest(self.method, self.path, content, headers, self.query, self.silence_s)

    def read(self, reply: HttpReply) -> T:
        """The value in a reply. Raises the `ServerError` that it carries, or a `TransportError` if it is neither."""
        if not 200 <= reply.status < 300 and reply.status != self.also_good:
            raise refusal(reply)
        try:
            return self.parse(reply.content)
        except ValueError as error:
            raise InvalidReply(f"{self.method} {self.path} -> {reply.status}: {error}") from error


def refusal(reply: HttpReply) -> CellarError:
    """The error in a reply that is not good: the server's problem, or what stands between us and the server."""
    try:
        problem = Problem.model_validate_json(reply.content)
    except ValueError:
        if reply.status in _GATEWAY_STATUSES:
            return ConnectionFailed(f"a gateway before the server answered {reply.status}")
        return InvalidReply(f"{reply.status} without a problem of the contract: {reply.content[:200]!r}")
    return from_problem(_with_retry_after(problem, reply.retry_after))


def _with_retry_after(problem: Problem, header: str | None) -> Problem:
    if problem.retry_after_s is None and header is not None and header.isdecimal():
        return problem.model_copy(update={"retry_after_s": float(header)})
    return problem

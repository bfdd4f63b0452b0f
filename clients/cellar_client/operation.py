"""An operation is one call of the contract as a value: what to send, and how to read what comes back.

Everything here is pure, so the async and the sync client share it; they differ only in how they wait.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from pydantic_core import to_json

from cellar_client.errors import CellarError, ConnectionFailed, InvalidReply, from_problem
from cellar_client.schemas import BatchResult, Problem, Request
from cellar_client.transport import HttpReply, HttpRequest

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_GATEWAY_STATUSES = (502, 503, 504)


@dataclass(frozen=True, slots=True)
class Operation(Generic[T_co]):
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    parse: Callable[[bytes], T_co]
    """Reads the body of a good reply; raises `ValueError` when it is not of the contract."""
    body: Request | bytes | None = None
    """Sent as JSON, or as it is."""
    query: Mapping[str, str] = field(default_factory=dict)
    silence_s: float | None = None
    """Longest silence of the server before the client asks again; None is the client's `timeout_s`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    also_good: int | None = None
    """A status beside 2xx whose body `parse` reads."""
    batched: Mapping[str, str] | None = None
    """What an entry of `POST /v1/batch` has beside the body (`op`, `session_id`); None cannot be batched."""
    near: str | None = None
    """A session that it is about, where the path names none."""

    @property
    def session_id(self) -> str | None:
        """The session that it is about, if any: of several servers, the one that holds it is the one to ask."""
        match self.path.split("/", 4):
            case ["", "v1", "sessions", session_id, *_]:
                return session_id
            case _:
                return self.near

    def request(self, idempotency_key: str) -> HttpRequest:
        """The request, the same for every try. Only a POST needs a key: repeating the others changes nothing."""
        headers = {**self.headers, **({"Idempotency-Key": idempotency_key} if self.method == "POST" else {})}
        content = b""
        if isinstance(self.body, bytes):
            headers["Content-Type"] = "application/octet-stream"
            content = self.body
        elif self.body is not None:
            headers["Content-Type"] = "application/json"
            content = self.body.model_dump_json(exclude_defaults=True).encode()
        return HttpRequest(self.method, self.path, content, headers, self.query, self.silence_s)

    def read(self, reply: HttpReply) -> T_co:
        """The value in a reply. Raises the `ServerError` that it carries, or a `TransportError` if it is neither."""
        if not 200 <= reply.status < 300 and reply.status != self.also_good:
            raise refusal(reply)
        try:
            return self.parse(reply.content)
        except ValueError as error:
            raise InvalidReply(f"{self.method} {self.path} -> {reply.status}: {error}") from error

    def entry(self) -> dict[str, object]:
        """The operation as one of a batch. Raises `ValueError` when it cannot be one."""
        if self.batched is None:
            raise ValueError(f"{self.method} {self.path} cannot be part of a batch")
        body = self.body.model_dump(exclude_defaults=True) if isinstance(self.body, Request) else {}
        return {**self.batched, **body}

    def outcome(self, result: BatchResult) -> T_co | CellarError:
        """What `read` would return or raise, from the operation's entry in the reply to a batch."""
        try:
            return self.read(HttpReply(result.status, b"" if result.body is None else to_json(result.body)))
        except CellarError as error:
            return error


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

"""The client for asyncio. What each call sends and reads is in `calls`; here is only how to wait."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self
from uuid import uuid4

from cellar_client import calls, schemas
from cellar_client.errors import CellarError, ConnectionFailed, InvalidReply
from cellar_client.events import Continued, EventReader
from cellar_client.operation import Operation, T, refusal
from cellar_client.retry import DEFAULT_RETRIES, Retries, Tries
from cellar_client.servers import Route, Servers
from cellar_client.settings import settings
from cellar_client.transport import AsyncHttpStream, AsyncTransport, HttpReply
from cellar_client.transport.aio import AiohttpTransport

P = ParamSpec("P")


def _sent(build: Callable[P, Operation[T]]) -> Callable[Concatenate["AsyncCellar", P], Coroutine[Any, Any, T]]:
    """The method of the client that sends what `build` builds."""

    @wraps(build)
    async def method(cellar: "AsyncCellar", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await cellar.send(build(*args, **kwargs))

    return method


def _sent_to_session(
    build: Callable[Concatenate[str, P], Operation[T]],
) -> Callable[Concatenate["AsyncSession", P], Coroutine[Any, Any, T]]:
    """The method of a session that sends what `build` builds for its id."""

    @wraps(build)
    async def method(session: "AsyncSession", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await session.cellar.send(build(session.session_id, *args, **kwargs))

    return method


def _begun_in_session(
    build: Callable[Concatenate[str, P], Operation[schemas.RunAccepted]],
) -> Callable[Concatenate["AsyncSession", P], Coroutine[Any, Any, "AsyncRunHandle"]]:
    """The method of a session that has a run accepted and gives a handle to it."""

    @wraps(build)
    async def method(session: "AsyncSession", /, *args: P.args, **kwargs: P.kwargs) -> "AsyncRunHandle":
        accepted = await session.cellar.send(build(session.session_id, *args, **kwargs))
        return AsyncRunHandle(session, accepted.run_id)

    return method


def _streamed_from_session(
    build: Callable[Concatenate[str, P], Operation[schemas.Run]],
) -> Callable[Concatenate["AsyncSession", P], AsyncIterator[schemas.RunEvent]]:
    """The method of a session that tells the events of a run."""

    @wraps(build)
    def method(session: "AsyncSession", /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[schemas.RunEvent]:
        return session.cellar.stream(build(session.session_id, *args, **kwargs))

    return method


def _opened(
    create: Callable[P, Operation[schemas.Session]],
) -> Callable[Concatenate["AsyncCellar", P], AbstractAsyncContextManager["AsyncSession"]]:
    """The context manager that creates a session on enter and deletes it on exit."""

    @asynccontextmanager
    @wraps(create)
    async def session(cellar: "AsyncCellar", /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator["AsyncSession"]:
        created = await cellar.send(create(*args, **kwargs))
        try:
            yield cellar.attach(created.session_id)
        except BaseException as error:
            try:
                await cellar.delete_session(created.session_id)
            except CellarError as second:
                error.add_note(f"session {created.session_id} was not deleted: {second}")
            raise
        await cellar.delete_session(created.session_id)

    return session


class AsyncSession:
    """A session of the server; made by `AsyncCellar.session` or `AsyncCellar.attach`.

    Every method raises `SessionLost` when the session's kernel died and its state is gone. A cell that fails never
    raises: the `Run` says so.
    """

    def __init__(self, cellar: "AsyncCellar", session_id: str) -> None:
        self.cellar = cellar
        self.session_id = session_id

    queue = _sent_to_session(calls.queue)
    queue_all = _sent_to_session(calls.queue_all)
    run = _sent_to_session(calls.run)
    cells = _sent_to_session(calls.cells)
    cell = _sent_to_session(calls.cell)
    withdraw = _sent_to_session(calls.withdraw)
    interrupt = _sent_to_session(calls.interrupt)
    reset = _sent_to_session(calls.reset)
    put_file = _sent_to_session(calls.put_file)
    get_file = _sent_to_session(calls.get_file)
    files = _sent_to_session(calls.files)
    delete_file = _sent_to_session(calls.delete_file)
    info = _sent_to_session(calls.session_info)
    run_async = _begun_in_session(calls.run_async)
    find_run = _sent_to_session(calls.find_run)
    stream_run = _streamed_from_session(calls.stream_run)

    async def fork(
        self, count: int | None = None, *, session_ids: Sequence[str] | None = None, trust: schemas.Trust = "isolated"
    ) -> list["AsyncSession"]:
        """Copies of the session, as `calls.fork` describes them; nothing deletes them but `delete_session`."""
        forks = await self.cellar.send(calls.fork(self.session_id, count, session_ids=session_ids, trust=trust))
        return [self.cellar.attach(fork.session_id) for fork in forks]


class AsyncRunHandle:
    """A run that goes on by itself; made by `AsyncSession.run_async`, or from a run's id to find it again."""

    def __init__(self, session: "AsyncSession", run_id: str) -> None:
        self.session = session
        self.run_id = run_id

    async def wait(self, timeout_s: float | None = None) -> schemas.Run:
        """The outcome. Raises `TimeoutError` if it goes on for longer, and what it was refused with in its turn."""
        patience_ends = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = calls.POLL_S if patience_ends is None else patience_ends - time.monotonic()
            run = await self.session.find_run(self.run_id, min(calls.POLL_S, max(0.0, left_s)))
            if run is not None:
                return run
            if left_s <= 0:
                raise TimeoutError(f"run {self.run_id} goes on")
            await asyncio.sleep(min(calls.POLL_PAUSE_S, left_s))


class AsyncCellar:
    """A connection to a Cellar server, or to several that share their sessions; make one and share it.

        async with AsyncCellar() as cellar, cellar.session() as session:
            await session.queue("x = 6")
            run = await session.run("print(x * 7)")
            assert run.stdout == "42\\n"

    Args:
        base_url: the server, or several (also separated by commas); `CELLAR_URL`, or http://127.0.0.1:8080, when left
            out.
        api_key: `CELLAR_API_KEY` when left out.
        timeout_s: of every call but runs, which have `calls.RUN_SILENCE_S` more than their cells.
        retries: what to do about failures that may pass.
        transport: replaces HTTP over the network, one for each server. The default ones go straight to the servers,
            through no proxy.
    """

    def __init__(
        self,
        base_url: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries = DEFAULT_RETRIES,
        transport: AsyncTransport | Sequence[AsyncTransport] = (),
    ) -> None:
        where = settings(base_url, api_key)
        self._retries = retries
        given = transport if isinstance(transport, Sequence) else [transport]
        self._servers: Servers[AsyncTransport] = Servers(
            given or [AiohttpTransport(url, api_key=where.api_key, timeout_s=timeout_s) for url in where.base_urls]
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        for server in self._servers.all:
            await server.close()

    session = _opened(calls.create_session)
    create_session = _sent(calls.create_session)
    delete_session = _sent(calls.delete_session)
    execute = _sent(calls.execute)
    info = _sent(calls.info)
    health = _sent(calls.health)
    readiness = _sent(calls.readiness)

    def attach(self, session_id: str) -> AsyncSession:
        """A session that exists already. Nothing is sent, and nothing deletes it but `delete_session`."""
        return AsyncSession(self, session_id)

    async def sessions(self, *, page_size: int = 100) -> AsyncIterator[schemas.Session]:
        """All sessions that the API key may see, asked for `page_size` (1 to 1000) at a time."""
        cursor: str | None = None
        while True:
            page = await self.send(calls.sessions_page(cursor, page_size))
            for session in page.sessions:
                yield session
            cursor = page.next_cursor
            if cursor is None:
                return

    async def batch(self, operations: Sequence[Operation[T]]) -> list[T | CellarError]:
        """What each operation returns or raises, as `calls.batch` does them, in as few requests as can be.

            first, second = cellar.batch([calls.run("a", "x"), calls.run("b", "y")])

        When a request fails, its operations and those after it have that error. Raises `ValueError`, before anything is
        sent, for an operation that cannot be batched.
        """
        results: list[T | CellarError] = []
        for request in calls.batches(operations):
            try:
                results += await self.send(request)
            except CellarError as error:
                return results + [error] * (len(operations) - len(results))
        return results

    async def stream(self, operation: Operation[schemas.Run]) -> AsyncIterator[schemas.RunEvent]:
        """The events of a run (`calls.stream_run`), the `Run` last. Raises `CellarError`."""
        request = operation.request(idempotency_key=uuid4().hex)
        tries, continued = Tries(self._retries), Continued()
        route = self._servers.route(operation.session_id, now_s=time.monotonic())
        while True:
            try:
                async with route.server.open(request) as reply:
                    async for event in _events(operation, reply):
                        if continued.new(event):
                            yield event
                        if isinstance(event, schemas.Run):
                            route.answered(event)
                            return
                raise ConnectionFailed(f"{operation.method} {operation.path}: the stream ended before the run")
            except CellarError as error:
                tries = _again(route, tries, error)
            await asyncio.sleep(tries.pause_s)

    async def send(self, operation: Operation[T]) -> T:
        """Send one operation, and again as `retries` allows. Raises `CellarError`."""
        request = operation.request(idempotency_key=uuid4().hex)
        tries = Tries(self._retries)
        route = self._servers.route(operation.session_id, now_s=time.monotonic())
        while True:
            try:
                value = operation.read(await route.server.send(request))
            except CellarError as error:
                tries = _again(route, tries, error)
            else:
                route.answered(value)
                return value
            await asyncio.sleep(tries.pause_s)


def _again(route: Route[AsyncTransport], tries: Tries, error: CellarError) -> Tries:
    """Where and when to try again. Raises the error when that is no use."""
    now_s = time.monotonic()
    elsewhere = route.refuse(error, now_s=now_s)
    following = tries.after(error, now_s=now_s, jitter=random.random(), elsewhere=elsewhere)
    if following is None:
        raise error
    return following


async def _events(operation: Operation[schemas.Run], reply: AsyncHttpStream) -> AsyncIterator[schemas.RunEvent]:
    """What a streamed reply says. Raises the error that it is, or ends with."""
    if reply.status != 200:
        content = b"".join([chunk async for chunk in reply.chunks])
        raise refusal(HttpReply(reply.status, content, reply.retry_after))
    reader = EventReader()
    async for chunk in reply.chunks:
        try:
            for event in reader.feed(chunk):
                yield event
        except ValueError as error:
            raise InvalidReply(f"{operation.method} {operation.path}: {error}") from error

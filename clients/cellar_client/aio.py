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
from cellar_client.errors import CellarError
from cellar_client.operation import Operation, T
from cellar_client.retry import DEFAULT_RETRIES, Retries, Tries
from cellar_client.settings import settings
from cellar_client.transport import AsyncTransport
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

    async def fork(
        self, count: int | None = None, *, session_ids: Sequence[str] | None = None, trust: schemas.Trust = "isolated"
    ) -> list["AsyncSession"]:
        """Copies of the session, as `calls.fork` describes them; nothing deletes them but `delete_session`."""
        forks = await self.cellar.send(calls.fork(self.session_id, count, session_ids=session_ids, trust=trust))
        return [self.cellar.attach(fork.session_id) for fork in forks]


class AsyncCellar:
    """A connection to a Cellar server; make one and share it.

        async with AsyncCellar() as cellar, cellar.session() as session:
            await session.queue("x = 6")
            run = await session.run("print(x * 7)")
            assert run.stdout == "42\\n"

    Args:
        base_url: the server; `CELLAR_URL`, or http://127.0.0.1:8080, when left out.
        api_key: `CELLAR_API_KEY` when left out.
        timeout_s: of every call but runs, which have `calls.RUN_SILENCE_S` more than their cells.
        retries: what to do about failures that may pass.
        transport: replaces HTTP over the network. The default one goes straight to the server, through no proxy.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries = DEFAULT_RETRIES,
        transport: AsyncTransport | None = None,
    ) -> None:
        where = settings(base_url, api_key)
        self._retries = retries
        self._transport = transport or AiohttpTransport(where.base_url, api_key=where.api_key, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

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
        requests = [
            calls.batch(operations[i : i + calls.BATCH_SIZE]) for i in range(0, len(operations), calls.BATCH_SIZE)
        ]
        results: list[T | CellarError] = []
        for request in requests:
            try:
                results += await self.send(request)
            except CellarError as error:
                return results + [error] * (len(operations) - len(results))
        return results

    async def send(self, operation: Operation[T]) -> T:
        """Send one operation, and again as `retries` allows. Raises `CellarError`."""
        request = operation.request(idempotency_key=uuid4().hex)
        tries = Tries(self._retries)
        while True:
            try:
                return operation.read(await self._transport.send(request))
            except CellarError as error:
                following = tries.after(error, now_s=time.monotonic(), jitter=random.random())
                if following is None:
                    raise
                tries = following
            await asyncio.sleep(tries.pause_s)

"""The files of a session's work directory, over HTTP: each request takes the session's turn, in order with its runs.

A change is staged in Redis, made by the kernel, kept in Redis, acknowledged, in this order, all within one turn. What
is acknowledged is therefore in the log; what a crash leaves staged was made by a kernel that died with the server, and
is not. While Redis is away between the second step and the third the turn is held: no cell sees a file that the log
lacks.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from cellar_client.schemas import ErrorCode, Files
from cellar_executor.admission import check_path
from cellar_executor.background import Background
from cellar_executor.durable import answered, recorded
from cellar_executor.errors import Refusal
from cellar_executor.kernel import FileProblem, Kernel, KernelFileError, KernelUnavailable
from cellar_executor.recovery import Recovery
from cellar_executor.sessions import LiveSession
from cellar_executor.store import Store

T = TypeVar("T")

MAX_LISTED = 1000
CODES: Mapping[FileProblem, ErrorCode] = {
    "not_found": "file_not_found",
    "invalid_path": "invalid_path",
    "too_large": "file_too_large",
}


class SessionFiles:
    """All raise `session_lost`, `session_not_found`, `invalid_path`, and what `Recovery.ensure_kernel` raises."""

    def __init__(self, store: Store, recovery: Recovery, background: Background) -> None:
        self._store = store
        self._recovery = recovery
        self._background = background

    async def put(self, live: LiveSession, path: str, data: bytes) -> None:
        """Raises `file_too_large`; `too_many_cells` when the log is full."""
        await self._change(live, path, data)

    async def delete(self, live: LiveSession, path: str) -> None:
        """Raises `file_not_found`; `too_many_cells` when the log is full."""
        await self._change(live, path, None)

    async def get(self, live: LiveSession, path: str) -> bytes:
        """Raises `file_not_found`, `file_too_large`."""
        check_path(path)
        max_bytes = live.config.limits.disk_mb * 2**20
        return await self._read(live, lambda kernel: kernel.get_file(path, max_bytes=max_bytes))

    async def list(self, live: LiveSession) -> Files:
        files, truncated = await self._read(live, lambda kernel: kernel.list_files(max_files=MAX_LISTED))
        return Files(files=files, truncated=truncated)

    async def _read(self, live: LiveSession, read: Callable[[Kernel], Coroutine[Any, Any, T]]) -> T:
        async def read_in_turn() -> T:
            async with self._turn(live) as kernel:
                found = await read(kernel)
            await self._store.touch(live.owned, live.config.idle_ttl_s)
            return found

        return await self._background.finish(read_in_turn())

    async def _change(self, live: LiveSession, path: str, data: bytes | None) -> None:
        check_path(path)
        await answered(self._background, lambda answer: self._change_in_turn(live, path, data, answer))

    async def _change_in_turn(
        self, live: LiveSession, path: str, data: bytes | None, answer: asyncio.Future[None]
    ) -> None:
        async with self._turn(live) as kernel:
            ttl_s = live.config.idle_ttl_s
            number = await self._store.stage_file(live.owned, path, data, ttl_s)
            try:
                await (kernel.delete_file(path) if data is None else kernel.put_file(path, data))
            except (KernelFileError, KernelUnavailable):
                await self._store.drop_file(live.owned, number, ttl_s)
                raise
            await recorded(lambda: self._store.keep_file(live.owned, number, ttl_s), answer)

    @asynccontextmanager
    async def _turn(self, live: LiveSession) -> AsyncIterator[Kernel]:
        live.refuse_if_lost()
        async with live.my_turn():
            await self._recovery.ensure_kernel(live)
            kernel = live.kernel
            assert kernel is not None
            try:
                yield kernel
            except KernelFileError as error:
                raise Refusal(CODES[error.kind], str(error)) from error
            except KernelUnavailable as error:
                await kernel.close()
                await self._store.session(live.ref)  # or the session was deleted
                raise Refusal("session_lost" if live.lost else "kernel_unavailable", "its kernel died") from error

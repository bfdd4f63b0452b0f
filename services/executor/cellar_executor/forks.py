"""`POST /v1/sessions/{id}/fork`: copies of a session with its log, all of them or none."""

import asyncio
from collections.abc import Sequence

from cellar_client.schemas import ForkRequest
from cellar_executor.admission import check_session_id
from cellar_executor.errors import Refusal
from cellar_executor.ids import Ids, Ref
from cellar_executor.kernel import Kernel, KernelUnavailable
from cellar_executor.records import SessionRecord
from cellar_executor.recovery import Recovery
from cellar_executor.replay import Log, Replay
from cellar_executor.sessions import LiveSession, LiveSessions
from cellar_executor.store import Store
from cellar_executor.tenancy.tenants import Tenants

REPLAYS_AT_ONCE = 4


class Forks:
    """Copies take the origin's log, and their kernels in one of two ways.

    isolated: each has a fresh kernel in which the log is played again, as apart from the origin as any two sessions.
    shared: each has a live copy of the origin's process in the same jail. They share files, limits and process numbers,
    and can harm each other. Once such a kernel is replaced (recovery, rollback, reset) its session stands alone: its
    own log is played again, and what the others did to the files is not in it.
    """

    def __init__(
        self, store: Store, sessions: LiveSessions, recovery: Recovery, replay: Replay, tenants: Tenants
    ) -> None:
        self._store = store
        self._tenants = tenants
        self._sessions = sessions
        self._recovery = recovery
        self._replay = replay

    async def fork(self, origin: LiveSession, request: ForkRequest, ids: Ids) -> list[SessionRecord]:
        """Takes the origin's turn, and leaves the origin as it was.

        Raises `invalid_request`, `session_exists`, `session_lost`, `session_not_found`, `not_repeatable`,
        `too_many_sessions`, `quota_exceeded`, `kernel_unavailable`, `isolation_unavailable`.
        """
        refs = _refs(origin.ref.tenant, request, ids)
        if await self._forked_before(refs, ids.nonce):
            return await self._store.sessions(refs)
        origin.refuse_if_lost()
        async with origin.my_turn():
            if request.trust == "shared" or origin.lost:
                await self._recovery.ensure_kernel(origin)
            with self._sessions.reserve(origin.ref.tenant, origin.config.limits.memory_mb, len(refs)):
                kernels = await self._kernels(origin, request, len(refs))
                return await self._hold(origin, refs, kernels, ids.nonce)

    async def _forked_before(self, refs: Sequence[Ref], nonce: str) -> bool:
        origins = await self._store.origins(refs)
        if all(origin == nonce for origin in origins):
            return True
        if any(origin is not None for origin in origins):
            raise Refusal("session_exists")
        return False

    async def _kernels(self, origin: LiveSession, request: ForkRequest, count: int) -> list[Kernel]:
        if request.trust == "shared":
            return await _live_copies(origin, count)
        if origin.unrepeatable:
            raise Refusal("not_repeatable", "a cell was stopped half-way, so running the cells again gives other state")
        log = await self._replay.log(origin.ref)
        room = asyncio.Semaphore(REPLAYS_AT_ONCE)
        copies: list[asyncio.Task[Kernel]] = []
        try:
            async with asyncio.TaskGroup() as group:
                copies += [group.create_task(self._played(origin, log, room)) for _ in range(count)]
        except BaseException as error:
            made = [copy.result() for copy in copies if not copy.cancelled() and copy.exception() is None]
            await asyncio.gather(*(kernel.close() for kernel in made))
            raise error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error from None
        return [copy.result() for copy in copies]

    async def _played(self, origin: LiveSession, log: Log, room: asyncio.Semaphore) -> Kernel:
        async with room:
            kernel = await self._sessions.fresh_kernel(origin.config)
            try:
                if not await self._replay.play(log, kernel):
                    raise Refusal("not_repeatable", "the session's cells ended otherwise when they were run again")
            except BaseException:
                await kernel.close()
                raise
            return kernel

    async def _hold(
        self, origin: LiveSession, refs: Sequence[Ref], kernels: Sequence[Kernel], nonce: str
    ) -> list[SessionRecord]:
        copies = [
            LiveSession(ref, origin.config, epoch=1, generation=1, kernel=kernel, unrepeatable=origin.unrepeatable)
            for ref, kernel in zip(refs, kernels, strict=True)
        ]
        try:
            self._sessions.hold(copies)
        except Refusal:
            await asyncio.gather(*(kernel.close() for kernel in kernels))
            raise
        try:
            ttl_s, quota = origin.config.idle_ttl_s, self._tenants.quota(origin.ref.tenant)
            return await self._store.fork(origin.owned, refs, ttl_s, origin=nonce, max_sessions=quota.sessions)
        except BaseException:
            await asyncio.gather(*(self._sessions.close(ref) for ref in refs))
            raise


def _refs(tenant: str, request: ForkRequest, ids: Ids) -> list[Ref]:
    for session_id in request.session_ids or []:
        check_session_id("session_ids", session_id)
    names = request.session_ids or [ids.fork(i) for i in range(request.count or 1)]
    return [Ref(tenant, name) for name in names]


async def _live_copies(origin: LiveSession, count: int) -> list[Kernel]:
    assert origin.kernel is not None
    copies: list[Kernel] = []
    try:
        for _ in range(count):
            copies.append(await origin.kernel.fork())
    except BaseException as error:
        await asyncio.gather(*(copy.close() for copy in copies))
        if isinstance(error, KernelUnavailable):
            raise Refusal("kernel_unavailable", str(error)) from error
        raise
    return copies

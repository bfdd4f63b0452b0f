"""One trajectory's notebook: a session of the executor, opened by the first run and closed when the trajectory ends.

In as few requests as can be, since each costs the trainer's one thread a millisecond: a first run is one (the session
is made, the blocks are queued, and they run), and so is a later one of a single block.

A cell that kills its kernel takes the session with it, which is the cell's doing and not the executor's failure: the
next run starts in a new session, as in a notebook whose kernel died.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Self, cast
from uuid import uuid4

from cellar_client import AsyncCellar, calls
from cellar_client.errors import CellarError, SessionLost
from cellar_client.operation import Operation
from cellar_client.schemas import Run

MAX_BLOCKS, MAX_BLOCK_CHARS = 1000, 1_000_000
"""Most blocks of one run, and longest block: the wire takes no more."""

CLOSE_S = 10.0
"""Longest wait for a session to be deleted. One that is not deletes itself when it has been idle."""

_log = logging.getLogger(__name__)


def can_run(blocks: Sequence[str]) -> bool:
    """Whether a run can be asked for with these blocks."""
    return 0 < len(blocks) <= MAX_BLOCKS and all(len(block) <= MAX_BLOCK_CHARS for block in blocks)


class Notebook:
    """Runs blocks one after the other, each as a cell of its own; what one defines, the later ones see.

    Args:
        seed: of the random numbers of its cells.
        cell_timeout_s: longest time for each cell.
        idle_ttl_s: how long the session outlives a trainer that is gone.
        memory_mb: the executor's own limit when left out.
        atomic: a run that fails leaves nothing behind.
    """

    def __init__(
        self,
        cellar: AsyncCellar,
        *,
        seed: int,
        cell_timeout_s: float,
        idle_ttl_s: float,
        memory_mb: int | None = None,
        atomic: bool = False,
    ) -> None:
        self._cellar = cellar
        self._create: dict[str, Any] = {
            "seed": seed,
            "idle_ttl_s": idle_ttl_s,
            "limits": {} if memory_mb is None else {"memory_mb": memory_mb},
        }
        self._run: dict[str, Any] = {"timeout_s": cell_timeout_s, "atomic": atomic}
        self._session_id: str | None = None
        self._may_have_died = False
        """The last run may have ended the kernel."""

    async def run(self, blocks: Sequence[str]) -> Run:
        """Run what `can_run`, until one fails. Raises `CellarError` when the executor failed, not the code."""
        try:
            run = await self._run_blocks(blocks)
        except SessionLost:
            if not self._may_have_died:
                raise
            await self._restart()
            run = await self._run_blocks(blocks)
        # Of a run that was rolled back the state was rebuilt, which fails where earlier cells cannot be repeated.
        self._may_have_died = run.status in ("timeout", "oom", "killed") or run.rolled_back
        return run

    async def _restart(self) -> None:
        """Not a reset: that leaves what was queued before the loss was found out."""
        assert self._session_id is not None, "it was lost"
        await self._cellar.delete_session(self._session_id)
        self._session_id, self._may_have_died = None, False

    async def _run_blocks(self, blocks: Sequence[str]) -> Run:
        if self._session_id is None:
            # An id of our own: then a session can be closed whose making was interrupted.
            self._session_id = uuid4().hex
            return await self._open_and_run(self._session_id, list(blocks))
        if blocks[:-1]:
            await self._cellar.send(calls.queue_all(self._session_id, list(blocks[:-1])))
        return await self._cellar.send(calls.run(self._session_id, blocks[-1], **self._run))

    async def _open_and_run(self, session_id: str, blocks: list[str]) -> Run:
        steps: list[Operation[Any]] = [
            calls.create_session(session_id=session_id, **self._create),
            calls.queue_all(session_id, blocks),
            calls.run(session_id, **self._run),
        ]
        outcomes = await self._cellar.batch(steps)
        if isinstance(outcomes[0], CellarError):  # then nothing was done, and may be done when there is room again
            outcomes = [await self._cellar.send(step) for step in steps]
        for outcome in outcomes:
            if isinstance(outcome, CellarError):
                raise outcome
        return cast(Run, outcomes[-1])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session_id is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._cellar.delete_session(self._session_id)
        except (CellarError, TimeoutError) as failure:
            _log.warning("session %s was not deleted: %r", self._session_id, failure)

"""A kernel that died under a session with `recovery: "replay"`: its finished cells are run again in a fresh one.

A cell that stopped half-way while its kernel lived on, by a soft time-out or a requested interrupt, left state that
running it again would not give. A session with such a cell is lost when its kernel dies. What a cell did whose kernel
died with it is gone in any case: the cells before it are run again, and it is not.
"""

import logging
import time

from cellar_executor.errors import Refusal
from cellar_executor.ids import Ref
from cellar_executor.kernel import Kernel
from cellar_executor.runs import FINISHED
from cellar_executor.sessions import LiveSession, Sessions
from cellar_executor.store import Store

log = logging.getLogger(__name__)


class Recovery:
    def __init__(self, store: Store, sessions: Sessions, *, timeout_s: float) -> None:
        self._store = store
        self._sessions = sessions
        self._timeout_s = timeout_s

    async def ensure_kernel(self, live: LiveSession) -> None:
        """A live kernel with the session's state; called by whoever has the session's turn.

        Raises `session_lost` where the state may not or cannot be rebuilt, and `kernel_unavailable`.
        """
        if live.alive:
            return
        live.refuse_if_lost()
        kernel = await self._sessions.fresh_kernel(live)
        try:
            if not await self._replay(live, kernel):
                live.unrepeatable = True
                await self._store.mark_lost(live.ref)
                raise Refusal("session_lost", "its cells could not be run again; a reset gives it a fresh namespace")
            await self._store.new_generation(live.ref, live.generation + 1, live.config.idle_ttl_s, reset=False)
            self._sessions.renew(live, kernel)
        except BaseException:
            await kernel.close()
            raise
        live.recovered = True
        log.info("session recovered", extra={"session_id": live.ref.session_id, "generation": live.generation})

    async def _replay(self, live: LiveSession, kernel: Kernel) -> bool:
        """Run the finished cells again. False when one does not finish, or all together take too long."""
        deadline = time.monotonic() + self._timeout_s
        for code in await self._finished_code(live.ref):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            outcome = await kernel.run_cell(code, timeout_s=min(live.config.limits.cell_timeout_s, left_s))
            if outcome.status not in FINISHED:
                return False
        return True

    async def _finished_code(self, ref: Ref) -> list[str]:
        """What ran since the session's last reset, in order."""
        session = await self._store.session(ref)
        records = await self._store.cells(ref, range(session.cells_total))
        return [
            record.cell.code or ""
            for record in records
            if record.cell.status in FINISHED and (record.generation or 0) >= session.base_generation
        ]

"""`POST /v1/execute`: one cell in a kernel of its own that is gone with the answer. Nothing of it is recorded."""

import time
from contextlib import nullcontext

from cellar_client.schemas import Cell, ExecuteRequest, Limits, Run
from cellar_executor.admission import check_runtime, decode_files, isolation_within, limits_within, timeout_within
from cellar_executor.errors import Refusal, invalid_field
from cellar_executor.ids import Ids
from cellar_executor.kernel import Kernel, KernelFileError, KernelUnavailable
from cellar_executor.presence import Presence
from cellar_executor.records import RunHead
from cellar_executor.runs import finished, run_from
from cellar_executor.sessions import LiveSessions
from cellar_executor.telemetry import metrics, tracing
from cellar_executor.tenancy.fairness import FairQueue
from cellar_executor.tenancy.rates import Rates


class Executions:
    def __init__(
        self, sessions: LiveSessions, queue: FairQueue, rates: Rates, limits: Limits, runtimes: frozenset[str]
    ) -> None:
        self._sessions = sessions
        self._queue = queue
        self._rates = rates
        self._limits = limits
        self._runtimes = runtimes

    async def execute(self, tenant: str, request: ExecuteRequest, ids: Ids, presence: Presence | None = None) -> Run:
        """With `presence` the cell is killed once that client has left.

        Raises `invalid_request`, `limit_too_high`, `unknown_runtime`, `isolation_unavailable`, `too_many_sessions`,
        `quota_exceeded`, `kernel_unavailable`.
        """
        arrived = time.monotonic()
        check_runtime(request.runtime, self._runtimes)
        limits = limits_within(self._limits, request.limits)
        isolation = isolation_within(self._sessions.tier, request.isolation)
        timeout_s = timeout_within(limits, request.timeout_s)
        files = decode_files(request.files)
        if ids.resumed:
            # The first attempt may have run its cell before its server died: it is not run again.
            return _run(ids, Cell(cell_id=ids.cell(0), index=0, code=request.code, status="lost"))
        with self._queue.place(tenant) as place:
            self._rates.charge(tenant, 1)
            async with (
                place.slot(),
                self._sessions.lone_kernel(tenant, limits, request.runtime, request.seed, isolation) as kernel,
            ):
                queue_s = time.monotonic() - arrived
                with nullcontext() if presence is None else presence.or_else(lambda: self._sessions.close_soon(kernel)):
                    await _put_files(kernel, files)
                    with tracing.span("cell", {"cell_id": ids.cell(0)}):
                        outcome = await kernel.run_cell(request.code, timeout_s=timeout_s, stdin=request.stdin)
        run = _run(ids, finished(ids.cell(0), 0, request.code, outcome), queue_s)
        metrics.run_ended(run)
        return run


async def _put_files(kernel: Kernel, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        try:
            await kernel.put_file(path, data)
        except KernelFileError as error:
            raise invalid_field("files", str(error)) from error
        except KernelUnavailable as error:
            raise Refusal("kernel_unavailable", str(error)) from error


def _run(ids: Ids, cell: Cell, queue_s: float = 0.0) -> Run:
    head = RunHead(run_id=ids.run(), generation=1, queue_s=queue_s, recovered=False)
    return run_from(head, ids.session(), [cell])

"""`POST /v1/execute`: one cell in a kernel of its own that is gone with the answer. Nothing of it is recorded."""

from cellar_client.schemas import Cell, ExecuteRequest, Limits, Run
from cellar_executor.admission import check_runtime, decode_files, isolation_within, limits_within, timeout_within
from cellar_executor.errors import Refusal, invalid_field
from cellar_executor.ids import Ids
from cellar_executor.kernel import Kernel, KernelFileError, KernelUnavailable
from cellar_executor.records import RunHead
from cellar_executor.runs import finished, run_from
from cellar_executor.sessions import LiveSessions


async def execute(
    request: ExecuteRequest, ids: Ids, sessions: LiveSessions, server_limits: Limits, runtimes: frozenset[str]
) -> Run:
    """Raises `invalid_request`, `limit_too_high`, `unknown_runtime`, `isolation_unavailable`, `too_many_sessions`,
    `kernel_unavailable`.
    """
    check_runtime(request.runtime, runtimes)
    limits = limits_within(server_limits, request.limits)
    isolation = isolation_within(sessions.tier, request.isolation)
    timeout_s = timeout_within(limits, request.timeout_s)
    files = decode_files(request.files)
    if ids.resumed:
        # The first attempt may have run its cell before its server died: it is not run again.
        return _run(ids, Cell(cell_id=ids.cell(0), index=0, code=request.code, status="lost"))
    async with sessions.lone_kernel(limits, request.runtime, request.seed, isolation) as kernel:
        await _put_files(kernel, files)
        outcome = await kernel.run_cell(request.code, timeout_s=timeout_s, stdin=request.stdin)
    return _run(ids, finished(ids.cell(0), 0, request.code, outcome))


async def _put_files(kernel: Kernel, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        try:
            await kernel.put_file(path, data)
        except KernelFileError as error:
            raise invalid_field("files", str(error)) from error
        except KernelUnavailable as error:
            raise Refusal("kernel_unavailable", str(error)) from error


def _run(ids: Ids, cell: Cell) -> Run:
    head = RunHead(run_id=ids.run(), generation=1, queue_s=0.0, recovered=False)
    return run_from(head, ids.session(), [cell])

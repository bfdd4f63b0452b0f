"""A kernel in this very process, and a supervisor that makes them: for tests of what stands above kernels."""

import asyncio
import contextlib
import io
import traceback
from typing import Any

from cellar_client.schemas import CellError, Isolation, Limits
from cellar_executor.kernel import CellOutcome, KernelUnavailable

NO_ISOLATION = Isolation(tier="none", namespaces=[], seccomp="none", cgroup="none", host_uid="shared")


class InProcessKernel:
    """Runs cells with `exec`. `die()` inside a cell ends it, as the death of a real kernel would."""

    def __init__(self) -> None:
        self.alive = True
        self.closed = False
        self.interrupted = 0
        self.files: dict[str, bytes] = {}
        self._namespace: dict[str, Any] = {"die": self._die}

    async def run_cell(self, code: str, *, timeout_s: float, stdin: str = "") -> CellOutcome:
        stdout, error = io.StringIO(), None
        try:
            with contextlib.redirect_stdout(stdout):
                exec(code, self._namespace)
        except Exception as raised:
            error = CellError(type=type(raised).__name__, message=str(raised), traceback=traceback.format_exc())
        status: Any = "killed" if not self.alive else "error" if error else "ok"
        return CellOutcome(status, stdout.getvalue(), "", None, error, 0.001, truncated=False)

    async def put_file(self, path: str, data: bytes) -> None:
        if path.startswith("/"):
            raise ValueError("outside the work directory")
        self.files[path] = data

    def interrupt(self) -> None:
        self.interrupted += 1

    async def close(self) -> None:
        self.alive = False
        self.closed = True

    def _die(self) -> None:
        self.alive = False


class InProcessSupervisor:
    """Keeps every kernel it made; makes no more while `full`."""

    def __init__(self) -> None:
        self.kernels: list[InProcessKernel] = []
        self.full = False
        self.problem: str | None = None
        self.self_tests = 0
        self.isolation = NO_ISOLATION

    async def start(self, *, limits: Limits, runtime: str, seed: int | None) -> InProcessKernel:
        if self.full:
            raise KernelUnavailable("no room")
        await asyncio.sleep(0.01)
        kernel = InProcessKernel()
        self.kernels.append(kernel)
        return kernel

    async def self_test(self) -> str | None:
        self.self_tests += 1
        await asyncio.sleep(0.01)
        return self.problem

    async def close(self) -> None:
        for kernel in self.kernels:
            await kernel.close()

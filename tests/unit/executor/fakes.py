"""A kernel in this very process, and a supervisor that makes them: for tests of what stands above kernels."""

import asyncio
import contextlib
import copy
import io
import traceback
from typing import Any

from cellar_client.schemas import CellError, FileInfo, Isolation, Limits, Tier
from cellar_executor.kernel import CellOutcome, KernelFileError, KernelUnavailable, OnOutput, Stock

WARM = Isolation(tier="warm", namespaces=[], seccomp="none", cgroup="none", host_uid="shared")


class Stalled(Exception):
    """Ends a cell as a soft time-out would."""


class InProcessKernel:
    """Runs cells with `exec`, in which `files` is its disk.

    `die()` ends the kernel, as the death of a real one would; `stall()` only the cell, as a soft time-out would.
    """

    def __init__(self, tier: Tier | None = None, files: dict[str, bytes] | None = None) -> None:
        self.alive = True
        self.closed = False
        self.interrupted = 0
        self.tier = tier
        self.files: dict[str, bytes] = {} if files is None else files
        self.namespace: dict[str, Any] = {"die": self._die, "stall": _stall, "files": self.files}

    async def run_cell(
        self, code: str, *, timeout_s: float, stdin: str = "", on_output: OnOutput | None = None
    ) -> CellOutcome:
        stdout, error = io.StringIO(), None
        try:
            with contextlib.redirect_stdout(stdout):
                exec(code, self.namespace)
        except Exception as raised:
            error = CellError(type=type(raised).__name__, message=str(raised), traceback=traceback.format_exc())
        if on_output is not None and stdout.getvalue():
            on_output("stdout", stdout.getvalue())
        stalled = error is not None and error.type == Stalled.__name__
        status: Any = "killed" if not self.alive else "timeout" if stalled else "error" if error else "ok"
        return CellOutcome(
            status, stdout.getvalue(), "", None, error, 0.001, truncated=False, cpu_s=0.5, peak_memory_bytes=4096
        )

    async def put_file(self, path: str, data: bytes) -> None:
        if path.startswith("/"):
            raise KernelFileError("invalid_path", "outside the work directory")
        self.files[path] = data

    async def get_file(self, path: str, *, max_bytes: int) -> bytes:
        data = self._file(path)
        if len(data) > max_bytes:
            raise KernelFileError("too_large", f"more than {max_bytes} bytes")
        return data

    async def list_files(self, *, max_files: int) -> tuple[list[FileInfo], bool]:
        infos = [FileInfo(path=path, size=len(data)) for path, data in sorted(self.files.items())]
        return infos[:max_files], len(infos) > max_files

    async def delete_file(self, path: str) -> None:
        self._file(path)
        del self.files[path]

    async def fork(self) -> "InProcessKernel":
        copied = InProcessKernel(self.tier, self.files)
        own = ("die", "stall", "files", "__builtins__")
        copied.namespace |= copy.deepcopy({name: value for name, value in self.namespace.items() if name not in own})
        return copied

    def interrupt(self) -> None:
        self.interrupted += 1

    async def close(self) -> None:
        self.alive = False
        self.closed = True

    def _file(self, path: str) -> bytes:
        if path not in self.files:
            raise KernelFileError("not_found", path)
        return self.files[path]

    def _die(self) -> None:
        self.alive = False


def _stall() -> None:
    raise Stalled


class InProcessSupervisor:
    """Keeps every kernel it made; makes no more while `full`, nor once there is no `room`."""

    def __init__(self) -> None:
        self.kernels: list[InProcessKernel] = []
        self.full = False
        self.room = 1000
        self.problem: str | None = None
        self.self_tests = 0
        self.isolation = WARM
        self.fenced_until: float | None = None

    async def start(
        self, *, limits: Limits, runtime: str, seed: int | None, tier: Tier | None = None
    ) -> InProcessKernel:
        if self.full or self.room == 0:
            raise KernelUnavailable("no room")
        self.room -= 1
        await asyncio.sleep(0.01)
        kernel = InProcessKernel(tier)
        self.kernels.append(kernel)
        return kernel

    def fence(self, until: float) -> None:
        """Nobody is killed: there is no process to kill."""
        self.fenced_until = until

    def stock(self) -> dict[str, Stock]:
        return {}

    async def self_test(self) -> str | None:
        self.self_tests += 1
        await asyncio.sleep(0.01)
        return self.problem

    async def close(self) -> None:
        for kernel in self.kernels:
            await kernel.close()

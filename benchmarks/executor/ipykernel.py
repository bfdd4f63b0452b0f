"""ipykernel, driven as nbclient and Jupyter drive it."""

import os
import subprocess

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from benchmarks.executor.system import descendants

CELL_TIMEOUT_S = 60


class IpykernelSide:
    name = "ipykernel"
    starts_quickly = False

    def open(self) -> "IpykernelSession":
        return IpykernelSession(*start_new_kernel(kernel_name="python3", stderr=subprocess.DEVNULL))

    def execute(self, code: str) -> None:
        session = self.open()
        session.run(code)
        session.close()

    def pids(self) -> list[int]:
        """Kernels are children of this very process."""
        return [pid for pid in descendants(os.getpid()) if _is_kernel(pid)]


class IpykernelSession:
    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self._manager = manager
        self._client = client

    def run(self, code: str) -> str:
        printed: list[str] = []

        def collect(message: dict[str, dict[str, str]]) -> None:
            printed.append(message["content"].get("text", ""))

        reply = self._client.execute_interactive(code, output_hook=collect, timeout=CELL_TIMEOUT_S)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(reply["content"])
        return "".join(printed)

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


def _is_kernel(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            return b"ipykernel_launcher" in cmdline.read()
    except FileNotFoundError:
        return False

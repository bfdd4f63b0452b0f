"""An executor as a child process, for as long as a `with` block: nsjail'd kernels and a Redis of its own."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = Path(".venv/bin/cellar-executor")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


class ExecutorFailed(Exception):
    """The executor did not come up; the message is its log."""


@contextmanager
def executor(data_dir: Path, log: Path) -> Iterator[str]:
    """Start an executor on a free port and yield its URL."""
    data_dir.mkdir(parents=True, exist_ok=True)
    address = data_dir / "address"
    address.unlink(missing_ok=True)
    arguments = ["serve", "--port", "0", "--address-file", str(address), "--data-dir", str(data_dir)]
    with log.open("wb") as output:
        process = subprocess.Popen([COMMAND, *arguments], stdout=output, stderr=output)
    try:
        yield _wait_for_address(process, address, log)
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def _wait_for_address(process: subprocess.Popen[bytes], address: Path, log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        if address.exists() and (url := address.read_text().strip()):
            return url
        time.sleep(0.05)
    raise ExecutorFailed(f"the executor did not start:\n{log.read_text(errors='replace')}")

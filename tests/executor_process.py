"""A real `cellar-executor serve` for tests: started on a data folder, killed, stopped and started again.

with ExecutorProcess(tmp_path / "data") as executor:
    Cellar(executor.url).create_session()
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

COMMAND = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "cellar-executor"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.02


class ExecutorProcess:
    """One executor at a time on `data_dir`, with these flags of `cellar-executor serve`.

    Attributes:
        url: where it listens; another one after each start.
        process: the server process.
    """

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = (str(COMMAND),),
    ) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._command = command
        self._data_dir = data_dir
        self._flags = flags
        self._env = {**os.environ, **(env or {})}
        self._address_file = data_dir / "address"
        self._log = data_dir / "server.log"
        self.url = ""
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What the server wrote to stderr, over all its starts."""
        return self._log.read_text()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._address_file.unlink(missing_ok=True)
        places = ["--data-dir", str(self._data_dir), "--address-file", str(self._address_file)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._command, "serve", "--port", "0", *places, *self._flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._address_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the executor did not start:\n{self.log}")
            time.sleep(POLL_S)
        self.url = self._address_file.read_text()
        urlopen(f"{self.url}/healthz").close()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: the server stands still, as when its machine does; what it started goes on."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, and wait for the orderly end."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def restart(self) -> None:
        """Orderly down and up again on the same data folder; after `kill` only up."""
        self.stop()
        self.start()

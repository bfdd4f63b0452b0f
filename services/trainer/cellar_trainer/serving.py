"""Starting a vLLM server as a child process: for the tests, the demo, and one machine. In production it is a service.

The environment and flags here are the ones that `policy/vllm` and `weights` need; deploy/ repeats them for containers.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from cellar_trainer.telemetry.progress import Progress

ROOT = Path(__file__).resolve().parents[3]
DEFAULT_PYTHON = ROOT / ".venv/envs/vllm/bin/python"
EXTENSION_DIR = ROOT / "deploy/vllm"
GRACE_S = 10.0
NICENESS = 10
"""vLLM's processes spin while they wait for each other; on a small machine that takes the cores that cells need."""
LOG_TAIL_LINES = 25
GUARD = f'read -r _; kill -s TERM -- "-$0"; sleep {GRACE_S:.0f}; kill -s KILL -- "-$0" 2>/dev/null'
"""Waits at the end of a pipe for its owner to go. A signal at a parent's death is not enough: vLLM loses a SIGTERM that
comes while it starts, and its engine and workers outlive a killed API server, busy for ever."""

_log = logging.getLogger(__name__)

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # the routes for weights; they know no key, so the server listens on loopback alone
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",  # on CPU the first request with log-probabilities would compile for half a minute
}


class ServerFailed(Exception):
    """The model server did not come up, or went down; the message ends with the tail of its log."""


class VLLMServer(AbstractContextManager["VLLMServer"]):
    """A vLLM server on loopback that lives as long as the `with` block.

        with VLLMServer(model_dir, log=Path("vllm.log")) as server:
            policy = VLLMPolicy(server.url, server.model)

    Args:
        model_dir: a model with its tokenizer, as Hugging Face's `save_pretrained` writes it.
        log: where the server's output goes.
        python: the Python of vLLM's environment.
        threads: of the model's arithmetic; vLLM takes all cores when left out, which a tiny model only loses by.
        pause_lease_s: how long a pause lasts without a sign of life of whoever paused.
        restarts: how often a server that ended by itself is started again, with the weights in `model_dir`.
        extra: further arguments of the server.
    """

    model = "policy"

    def __init__(
        self,
        model_dir: Path,
        *,
        log: Path,
        python: Path = DEFAULT_PYTHON,
        dtype: str = "float32",
        max_model_len: int = 4096,
        max_sequences: int = 64,
        kv_cache_mb: int = 64,
        threads: int | None = None,
        pause_lease_s: float = 60.0,
        restarts: int = 0,
        start_timeout_s: float = 600.0,
        progress: Progress | None = None,
        extra: tuple[str, ...] = (),
    ) -> None:
        self.model_dir = model_dir
        self._log = log
        self._restarts = restarts
        self._stopping = threading.Event()
        self._starting_or_stopping = threading.Lock()
        self._start_timeout_s = start_timeout_s
        self._progress = progress or Progress()
        self._port = _free_port()
        environment = ENVIRONMENT | {"PYTHONPATH": str(EXTENSION_DIR), "CELLAR_PAUSE_LEASE_S": str(pause_lease_s)}
        if threads is not None:
            environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
        self._command = [
            *("nice", "-n", str(NICENESS), "env", *(f"{name}={value}" for name, value in environment.items())),
            *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model_dir), "--served-model-name", self.model, "--dtype", dtype),
            *("--host", "127.0.0.1", "--port", str(self._port), "--disable-uvicorn-access-log"),
            *("--enforce-eager", "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"),
            *("--max-model-len", str(max_model_len), "--max-num-seqs", str(max_sequences)),
            *("--kv-cache-memory-bytes", str(kv_cache_mb * 2**20), "--enable-scale-out"),
            # A seeded request whose prompt is read in two steps kills vLLM's CPU engine ("CPU Generator does not use
            # offset"): every prompt has to fit into one.
            *("--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(max_model_len, 8192))),
            *("--worker-extension-cls", "cellar_weights.CellarWeights"),
            *("--weight-transfer-config", json.dumps({"backend": "cellar"})),
            *("--middleware", "cellar_lease.PauseLease"),
            *extra,
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of the API server, which leads a session that all of vLLM's processes are in."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def __enter__(self) -> Self:
        self._log.write_bytes(b"")
        self._start()
        try:
            with self._progress.waiting("starting vLLM (half a minute to a minute)"):
                self._wait_until_healthy()
        except BaseException:
            self._stop()
            raise
        threading.Thread(target=self._keep_alive, daemon=True, name="vllm-watchdog").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if not self.alive:
                raise ServerFailed(f"vLLM ended with status {self._process.returncode}\n{self._log_tail()}")
            if _healthy(self.url):
                return
            time.sleep(0.25)
        raise ServerFailed(f"vLLM was not up within {self._start_timeout_s:.0f} s\n{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join([f"--- end of {self._log}", *lines[-LOG_TAIL_LINES:]])

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, str(self._process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )

    def _keep_alive(self) -> None:
        """Start the server again when it ends."""
        for _ in range(self._restarts):
            self._process.wait()
            with self._starting_or_stopping:
                if self._stopping.is_set():
                    return
                _log.warning("vLLM ended with status %s; starting it again", self._process.returncode)
                self._end_group()
                self._start()

    def _stop(self) -> None:
        with self._starting_or_stopping:
            self._stopping.set()
        _signal_group(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        self._end_group()

    def _end_group(self) -> None:
        """Also after a good end: the engine and its workers are in the group, and may have outlived it."""
        _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._guard.kill()
        self._guard.communicate()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)

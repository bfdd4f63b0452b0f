"""Starting a vLLM server as a child process: for the tests, the demo, and one machine. In production it is a service.

The environment and flags here are the ones that `policy/vllm.py` and `weights.py` need; deploy/ repeats them for
containers.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from cellar_trainer.progress import Progress

ROOT = Path(__file__).resolve().parents[3]
DEFAULT_PYTHON = ROOT / ".venv/envs/vllm/bin/python"
EXTENSION_DIR = ROOT / "deploy/vllm"
GRACE_S = 10.0
NICENESS = 10
"""vLLM's processes spin while they wait for each other; on a small machine that takes the cores that cells need."""
LOG_TAIL_LINES = 25
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)

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
        start_timeout_s: float = 300.0,
        progress: Progress | None = None,
        extra: tuple[str, ...] = (),
    ) -> None:
        self.model_dir = model_dir
        self._log = log
        self._start_timeout_s = start_timeout_s
        self._progress = progress or Progress()
        self._port = _free_port()
        environment = ENVIRONMENT | {"PYTHONPATH": str(EXTENSION_DIR)}
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
            *("--weight-transfer-config", json.dumps({"backend": "file"})),
            *extra,
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_die_with_parent
            )
        try:
            with self._progress.waiting("starting vLLM (half a minute to a minute)"):
                self._wait_until_healthy()
        except BaseException:
            self._stop()
            raise
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

    def _stop(self) -> None:
        _signal_group(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        # Also when it ended well: the engine and its workers are in the group, and may have outlived it.
        _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)

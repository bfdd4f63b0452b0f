"""Which policy samples, and how new weights reach it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

Seconds = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    kind: Literal["vllm", "local"] = "vllm"
    """`local` samples in the trainer's own process, one request at a time: for tests and for trying things out."""
    url: str = "http://127.0.0.1:8000"
    """Root of the vLLM server, without `/v1`."""
    model: str = "policy"
    """The name under which the server serves the model."""
    api_key: SecretStr | None = None
    """What the server was given as `--api-key`; with our middleware (deploy/vllm) the routes for weights ask for it.
    `CELLAR_VLLM_KEY` when left out."""
    timeout_s: Seconds = 300.0
    """Longest wait for one completion."""
    transfer: Literal["file", "gloo", "nccl", "ipc"] = "file"
    """How weights travel. `file`: through a folder that both see, on a RAM disk as fast as memory. `gloo`: over the
    network between CPUs. Both are our own backend, `cellar` in the server's `--weight-transfer-config`. `nccl`: between
    GPUs, never two processes on one. `ipc`: on one GPU that trainer and server share. Both are vLLM's own, under these
    names, and neither has been run on GPUs yet."""
    transfer_timeout_s: Seconds = 300.0
    """Longest wait for one transfer, from pause to resume."""
    recovery_s: Annotated[float, Field(ge=0)] = 600.0
    """How long a publish waits for a server that went away, to give everything to it again once it is back."""
    weights_dir: Path | None = None
    """For `file`: the folder, seen by both sides under this name; shared memory when left out."""
    rendezvous_host: str = "127.0.0.1"
    """For `gloo`: the trainer's address as the server sees it."""
    max_difference: Annotated[float, Field(gt=0)] | None = None
    """Largest difference of a log-probability between server and trainer that passes after a transfer. When left out:
    0.001 if all is float32, else 0.25, since a logit of 16 in bfloat16 is exact to 0.06."""

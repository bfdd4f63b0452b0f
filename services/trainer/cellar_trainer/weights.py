"""Handing new weights to whatever samples: the end of a training step, before the next rollout.

A publish that is not proved is not a publish: after every one, a fixed prompt is scored on both sides and compared. A
tied head that kept its old weights would otherwise sample from a policy that never was, and nothing would fail.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx
from safetensors.torch import save_file
from transformers import PreTrainedModel

from cellar_trainer.model import score
from cellar_trainer.policy.local import LocalPolicy
from cellar_trainer.policy.vllm import VLLMPolicy
from cellar_trainer.types import Metrics

SHARED_MEMORY = Path("/dev/shm")


class PublishFailed(Exception):
    """The policy's weights are not the model's. A vLLM server that was being updated has to be restarted."""


class WeightPublisher(Protocol):
    async def publish(self, model: PreTrainedModel, version: int) -> Metrics:
        """Make the policy sample with `model`'s weights, as `version`. Raises `PublishFailed`."""
        ...

    async def close(self) -> None: ...


class LocalPublisher:
    """For a policy in this process: a copy in memory."""

    def __init__(self, policy: LocalPolicy) -> None:
        self._policy = policy

    async def publish(self, model: PreTrainedModel, version: int) -> Metrics:
        started_s = time.perf_counter()
        self._policy.load(model, version)
        return {"publish_s": time.perf_counter() - started_s}

    async def close(self) -> None:
        pass


class FilePublisher:
    """For a vLLM server on this machine: a safetensors file in shared memory, which vLLM's worker reads.

    Args:
        url: root of the server; its routes for weights know no API key, so it has to be on a private network.
        policy: the same server, for the proof.
        probe_ids: the prompt that both sides score.
        max_difference: largest difference of a log-probability that counts as equal.
        directory: seen by both sides; shared memory when left out.
        transport: replaces HTTP over the network.
    """

    def __init__(
        self,
        url: str,
        policy: VLLMPolicy,
        *,
        probe_ids: Sequence[int],
        max_difference: float,
        directory: Path | None = None,
        timeout_s: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._policy = policy
        self._probe_ids = list(probe_ids)
        self._max_difference = max_difference
        self._directory = directory or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()))
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_s, trust_env=False, transport=transport)
        self._initialised = False

    async def publish(self, model: PreTrainedModel, version: int) -> Metrics:
        started_s = time.perf_counter()
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix="cellar-", suffix=".safetensors") as file:
            await asyncio.to_thread(_save, model, Path(file.name))
            await self._transfer(file.name, version)
        published_s = time.perf_counter()
        difference = await self._prove(model)
        return {
            "publish_s": published_s - started_s,
            "publish_proof_s": time.perf_counter() - published_s,
            "publish_difference": difference,
        }

    async def close(self) -> None:
        await self._http.aclose()

    async def _transfer(self, path: str, version: int) -> None:
        if not self._initialised:
            await self._call("/init_weight_transfer_engine", {"init_info": {}})
            self._initialised = True
        await self._call("/pause?mode=keep")
        # From here to the end an error leaves layers without weights: the next token would end the server.
        await self._call("/start_weight_update")
        await self._call("/update_weights", {"update_info": {"path": path}})
        await self._call("/finish_weight_update", {"weight_version": str(version)})
        # vLLM 0.32 empties its caches at the pause as well, but documents that `keep` will not.
        await self._call("/reset_prefix_cache?reset_running_requests=true")
        await self._call("/resume")

    async def _call(self, route: str, body: dict[str, Any] | None = None) -> None:
        try:
            response = await self._http.post(route, json=body)
        except httpx.HTTPError as error:
            raise PublishFailed(f"{route}: no answer from the model server, restart it: {error!r}") from error
        if not response.is_success:
            raise PublishFailed(f"{route}: {response.status_code}, restart the model server: {response.text[:300]}")

    async def _prove(self, model: PreTrainedModel) -> float:
        served = await self._policy.score(self._probe_ids)
        difference = max(abs(a - b) for a, b in zip(served, score(model, self._probe_ids), strict=True))
        if not difference <= self._max_difference:
            raise PublishFailed(
                f"the model server's log-probabilities differ by {difference:.4g} after an update "
                f"(at most {self._max_difference:.4g} is allowed)"
            )
        return difference


def _save(model: PreTrainedModel, path: Path) -> None:
    # A tied weight comes once from named_parameters(); safetensors refuses two names for one storage, and vLLM ties it.
    save_file({name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}, path)

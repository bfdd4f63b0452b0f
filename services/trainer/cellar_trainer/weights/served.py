"""Publishing to a vLLM server: paused for the transfer, proved after it, and given everything again if it went away.

A publish that is not proved is not a publish: after every one, a fixed prompt is scored on both sides and compared. A
tied head that kept its old weights would otherwise sample from a policy that never was, and nothing would fail.
"""

import asyncio
import logging
import time
from collections.abc import Sequence

import torch

from cellar_trainer.policy.protocol import PolicyUnavailable
from cellar_trainer.policy.vllm import ControlFailed, RouteMissing, VLLMControl, VLLMPolicy
from cellar_trainer.types import Metrics
from cellar_trainer.weights.protocol import PublishFailed, Transfer, Weights, WeightSource

ATTEMPTS = 3
"""Of a server that is there, and refuses or has not what it was given."""
POLL_S = 0.5
TIDYING_S = 15.0
"""Longest wait for a server to be put right after a failed transfer."""
EXACT = 1e-3
"""Largest difference of two float32 log-probabilities of one model: its sums may be in another order."""
HALF_PRECISE = 0.25
"""The same where one side computes in half precision: a logit of 16 in bfloat16 is exact to 0.06."""

_log = logging.getLogger(__name__)


class Unproved(Exception):
    """The server does not have the weights that it was given."""


class ServedPublisher:
    """Publishes to one vLLM server.

    Args:
        policy: the server, for the proof.
        control: the same server.
        transfer: how the weights travel.
        probe_ids: the prompt that both sides score.
        max_difference: largest difference of a log-probability that counts as equal; when left out, by the dtypes.
        timeout_s: longest wait for one transfer.
        recovery_s: how long it is tried again, and a server that went away is waited for.
    """

    def __init__(
        self,
        policy: VLLMPolicy,
        control: VLLMControl,
        transfer: Transfer,
        *,
        probe_ids: Sequence[int],
        max_difference: float | None = None,
        timeout_s: float = 300.0,
        recovery_s: float = 600.0,
    ) -> None:
        self._policy = policy
        self._control = control
        self._transfer = transfer
        self._probe_ids = list(probe_ids)
        self._max_difference = max_difference
        self._timeout_s = timeout_s
        self._recovery_s = recovery_s
        self._opened = False
        self._updating = False

    async def publish(self, source: WeightSource, version: int) -> Metrics:
        started_s = time.perf_counter()
        # All of it first: gathering shards is a collective of the trainer's ranks, which a failing server must not stop
        # half-way, and the server is not paused for it.
        weights = await asyncio.to_thread(
            lambda: [(name, self._transfer.prepare(weight)) for name, weight in source.weights()]
        )
        expected = await asyncio.to_thread(source.score, self._probe_ids)
        ready_s = time.perf_counter()
        deadline = time.monotonic() + self._recovery_s
        refusals = 0
        while True:
            try:
                return await self._attempt(weights, expected, version, waited_s=ready_s - started_s)
            except RouteMissing as failure:
                raise PublishFailed(str(failure)) from failure
            except (PolicyUnavailable, TimeoutError, Unproved) as failure:
                _log.warning("weights of version %d did not arrive: %s", version, failure or repr(failure))
                refusals += _is_refusal(failure)
                if refusals == ATTEMPTS:
                    raise PublishFailed(_advice(failure, f"it failed {ATTEMPTS} times")) from failure
                if not await self._is_back(deadline):
                    raise PublishFailed(_advice(failure, f"it did not work in {self._recovery_s:.0f} s")) from failure

    async def close(self) -> None:
        self._transfer.drop()
        await self._control.close()

    async def _attempt(self, weights: Weights, expected: list[float], version: int, *, waited_s: float) -> Metrics:
        started_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                allowed = await self._allowed_difference(weights)
                await self._update(weights, version)
        except BaseException:
            await self._tidy()
            raise
        sent_s = time.perf_counter()
        difference = await self._prove(expected, allowed)
        return {
            "publish_s": waited_s + sent_s - started_s,
            "publish_proof_s": time.perf_counter() - sent_s,
            "publish_difference": difference,
        }

    async def _update(self, weights: Weights, version: int) -> None:
        if not self._opened:
            await self._transfer.open(self._control)
            self._opened = True
        async with self._transfer.carry(self._control, weights) as send:
            await self._control.pause()
            self._updating = True
            await self._control.start_update()
            await send()
            await self._control.finish_update(version)
            self._updating = False
        await self._control.reset_prefix_cache()
        await self._control.resume()

    async def _tidy(self) -> None:
        """Leave no server paused, whatever happened to it, this task's cancellation included."""
        self._opened = False
        self._transfer.drop()
        try:
            async with asyncio.timeout(TIDYING_S):
                if self._updating:  # before anything that may take long: no token is to carry the old version's label
                    await self._control.mark_incomplete()
                await self._control.abandon_update()
                # Not otherwise: without weights the next token would end the server. Its own lease ends the pause.
                await self._control.resume()
        except (ControlFailed, TimeoutError) as failure:
            _log.warning("the model server is not put right: %s", failure or repr(failure))

    async def _prove(self, expected: list[float], allowed: float) -> float:
        served = await self._policy.score(self._probe_ids)
        differences = [abs(a - b) for a, b in zip(served, expected, strict=True)]
        difference = max(differences)
        if not all(d <= allowed for d in differences):  # a NaN is no difference that is allowed
            await self._control.mark_incomplete()
            raise Unproved(
                f"the model server's log-probabilities differ by {difference:.4g} after an update "
                f"(policy.max_difference allows {allowed:.4g})"
            )
        return difference

    async def _allowed_difference(self, weights: Weights) -> float:
        if self._max_difference is not None:
            return self._max_difference
        exact = all(weight.dtype == torch.float32 for _, weight in weights) and await self._control.dtype() == "float32"
        self._max_difference = EXACT if exact else HALF_PRECISE
        return self._max_difference

    async def _is_back(self, deadline: float) -> bool:
        """Also one that is well must not be tried for ever: it may break every update."""
        while time.monotonic() < deadline:
            if await self._control.is_well():
                return True
            await asyncio.sleep(POLL_S)
        return False


def _is_refusal(failure: Exception) -> bool:
    """Whether the server was there, so that waiting for it does not help."""
    return not isinstance(failure, ControlFailed) or failure.refused


def _advice(failure: Exception, why: str) -> str:
    said = str(failure) or repr(failure)
    return f"the model server could not be given the weights; {why}. Restart it, then resume this run. {said}"

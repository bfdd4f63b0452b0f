"""The fused head against naive logits on the CPU: peak memory, and time forward and backward.

    .venv/envs/trainer/bin/python -m benchmarks.head [--rounds 3] [--cases time memory]

Contenders compute the four scalars per token (log p of the target and of the trigger, log Z, sum q^2) and their
gradients with respect to hidden states and weight; "exact f" is the fused head with the pass for `f = "exact"` in
addition. Each runs in a process of its own that first touches its inputs, resets the kernel's mark of its peak memory
and then measures what comes on top, the gradients among it. Rounds interleave the contenders; times are medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cellar_trainer.learning.head import TokenScalars, exact_f, token_scalars

VOCABULARY, TRIGGER = 151_936, 151_657  # of Qwen3; <tool_call>
CASES = {"memory": (8192, 64), "time": (1024, 1024), "small": (1024, 256)}
"""Tokens and hidden size. Naive needs three copies of the logits, each of 5 GB at 8192 tokens."""
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(measure(CONTENDERS[args.contender], *CASES[args.cases[0]])))
        return
    for case in args.cases:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(args.rounds):
            for name, rounds in found.items():
                rounds.append(in_a_process(name, case))
        report(case, {name: tuple(map(statistics.median, zip(*rounds, strict=True))) for name, rounds in found.items()})


def in_a_process(contender: str, case: str) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.head", "--contender", contender, "--cases", case]
    seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return seconds, peak


def report(case: str, found: dict[str, tuple[float, ...]]) -> None:
    tokens, hidden = CASES[case]
    print(
        f"\n{case}: {tokens} tokens x {VOCABULARY} vocabulary, hidden size {hidden}, {torch.get_num_threads()} threads"
    )
    naive_seconds, naive_peak = found["naive"]
    for name, (seconds, peak) in found.items():
        ratios = f"time x {seconds / naive_seconds:.2f}, memory / {naive_peak / peak:.1f}"
        print(f"  {name:8} {seconds:7.2f} s {peak / MIB:8.0f} MiB    {ratios}", flush=True)


def measure(contender: Callable[[Tensor, Tensor, Tensor], Tensor], tokens: int, hidden: int) -> tuple[float, float]:
    """Seconds, and bytes of memory at the peak beyond what was there before."""
    rng = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(tokens, hidden, generator=rng).requires_grad_()
    weight_VD = (torch.randn(VOCABULARY, hidden, generator=rng) / hidden**0.5).requires_grad_()
    targets_N = torch.randint(VOCABULARY, (tokens,), generator=rng)
    contender(hidden_ND[:8], weight_VD[: TRIGGER + 1], targets_N[:8] % TRIGGER).backward()  # starts the threads
    hidden_ND.grad = weight_VD.grad = None
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    contender(hidden_ND, weight_VD, targets_N).backward()
    return time.perf_counter() - start, memory("VmHWM") - before


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def naive(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """All logits at once, each quantity by the leanest way that autograd can follow: three copies of them at most."""
    logprobs_NV = (hidden_ND @ weight_VD.T).log_softmax(-1)
    both_N2 = torch.stack([targets_N, torch.full_like(targets_N, TRIGGER)], -1)
    logprobs_N, trigger_logprobs_N = logprobs_NV.gather(-1, both_N2).unbind(-1)
    log_total_N = (hidden_ND * weight_VD[targets_N]).sum(-1) - logprobs_N
    log_others_N = torch.log1p(-trigger_logprobs_N.exp())
    with torch.no_grad():
        squares_N = logprobs_NV.exp().square_().sum(-1) - (2 * trigger_logprobs_N).exp()
        sum_q2_N = squares_N * (-2 * log_others_N).exp()
    return objective(logprobs_N, trigger_logprobs_N, log_total_N + log_others_N, sum_q2_N)


def fused(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    return _of(token_scalars(hidden_ND, weight_VD, targets_N, TRIGGER))


def fused_with_exact_f(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    scalars = token_scalars(hidden_ND, weight_VD, targets_N, TRIGGER)
    advantages_N, log_z_N = torch.ones(len(targets_N)), scalars.log_z_N.detach()
    return (
        _of(scalars) + exact_f(hidden_ND, weight_VD, targets_N, advantages_N, TRIGGER, eta=1.0, log_z_N=log_z_N).sum()
    )


def _of(scalars: TokenScalars) -> Tensor:
    log_total_N = torch.logaddexp(scalars.log_z_N, scalars.trigger_logit_N)
    logprobs = scalars.target_logit_N - log_total_N, scalars.trigger_logit_N - log_total_N
    return objective(*logprobs, scalars.log_z_N, scalars.sum_q2_N)


def objective(logprobs_N: Tensor, trigger_logprobs_N: Tensor, log_z_N: Tensor, sum_q2_N: Tensor) -> Tensor:
    """A sum to which every quantity has its own weight."""
    return (logprobs_N + 0.3 * trigger_logprobs_N - 0.5 * log_z_N + sum_q2_N).sum()


CONTENDERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "fused": fused,
    "exact f": fused_with_exact_f,
}


if __name__ == "__main__":
    main()

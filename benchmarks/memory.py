"""Memory of a training step on the CPU, predicted by `cellar_trainer.learning.memory` and measured.

    .venv/envs/trainer/bin/python -m benchmarks.memory

A random model of about 34 M parameters makes one optimiser step of two micro-batches; each setting in a process of its
own, whose largest resident size after the model was loaded, less what it had before, is the measurement.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cellar_trainer.learning.learner import Learner, OptimiserOptions
from cellar_trainer.learning.lora import LoraOptions
from cellar_trainer.learning.memory import Shape, predicted_memory, shape_model
from cellar_trainer.learning.model import ControlTokens, load_model
from cellar_trainer.learning.objectives import ObjectiveOptions
from cellar_trainer.learning.packing import Example, pack
from cellar_trainer.types import Segment, SegmentKind, Task, Trajectory

MIB = 2**20
BATCH = Shape(rows=2, width=1024)
VOCABULARY = 16_000
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, checkpointing": {"activation_checkpointing": True},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "LoRA": {"lora": LoraOptions(rank=16)},
    "LoRA, checkpointing": {"lora": LoraOptions(rank=16), "activation_checkpointing": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SETTINGS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.model:
        print(measured(arguments.model, SETTINGS[arguments.only]))
        return
    print(f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}\n")
    print("| setting | predicted MiB | measured MiB | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        random_model(Path(folder))
        for name in [arguments.only] if arguments.only else SETTINGS:
            command = [sys.executable, "-m", "benchmarks.memory", "--model", folder, "--only", name]
            seen = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / MIB
            said = predicted(Path(folder), **SETTINGS[name]) / MIB
            print(f"| {name} | {said:.0f} | {seen:.0f} | {said / seen:.2f} |", flush=True)


def random_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def predicted(
    path: Path,
    *,
    lora: LoraOptions | None = None,
    compute_dtype: Any = "float32",
    activation_checkpointing: bool = False,
) -> float:
    model = shape_model(path, dtype="float32", lora=lora or LoraOptions())
    use = predicted_memory(
        model, BATCH, compute_dtype=compute_dtype, activation_checkpointing=activation_checkpointing, ranks=1
    )
    return sum(use.values())


def measured(path: Path, options: dict[str, Any]) -> int:
    """Bytes that the weights take and that a step then adds."""
    batches = pack([example() for _ in range(2 * BATCH.rows)], token_budget=BATCH.tokens, pad_id=0)
    model = load_model(path, dtype="float32", device="cpu")
    learner = Learner(
        model, ControlTokens(1, 2, 0), ObjectiveOptions(), OptimiserOptions(1e-4), temperature=1.0, **options
    )
    weights = sum(weight.nbytes for weight in model.parameters())
    with torch.no_grad():
        for weight in model.parameters():  # in memory of its own, not in the file's
            weight.data = weight.data.clone()
    gc.collect()
    before = resident()
    learner.learn(batches)
    learner.learn(batches)  # with the optimiser's state in place
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024 - before + weights


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def example() -> Example:
    sampled = BATCH.width - 100
    ids = torch.randint(3, VOCABULARY, (BATCH.width + 1,)).tolist()
    logprobs = (-10.0,) * sampled
    segments = [
        Segment(SegmentKind.PROMPT, tuple(ids[:-sampled])),
        Segment(SegmentKind.SAMPLED, tuple(ids[-sampled:]), logprobs, logprobs, (0,) * sampled),
    ]
    return Example(Trajectory(Task("", "", ""), segments), 1.0)


if __name__ == "__main__":
    main()

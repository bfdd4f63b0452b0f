"""What has to be there before a model server can start: the demo's tasks, and its tiny model, warm-started.

    python -m demo.prepare --out DIR [--seed N]

The folder is there whole or not at all. One that was made with the same seed is left as it is.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.progress import Progress as Bar
from transformers.utils import logging as transformers_logging

from demo.arithmetic import Problem, split, write_tasks
from demo.tiny_model import make_model, make_tokenizer, save, warm_start

HELD_OUT = 64
WARM_START_STEPS = 600
SEED_FILE = "seed"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.prepare", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for tasks and model")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks, the model and its warm start")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the demo
    transformers_logging.disable_progress_bar()
    out: Path = options.out
    console = Console(soft_wrap=True)
    if out.exists():
        if seed_of(out) != options.seed:
            parser.error(f"--out: {out} is there and was not prepared with seed {options.seed}: name another folder")
        console.print(f"{out} holds the tasks and the model of seed {options.seed} already")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as unfinished:
        folder = Path(unfinished, out.name)
        folder.mkdir()
        prepare(folder, options.seed, console)
        (folder / SEED_FILE).write_text(f"{options.seed}\n")
        folder.rename(out)
    console.print(f"the tasks and the model of seed {options.seed} are in {out}")


def prepare(folder: Path, seed: int, console: Console) -> None:
    training_problems, held_out = split(HELD_OUT, seed)
    write_tasks(training_problems, folder / "train.jsonl")
    write_tasks(held_out, folder / "held_out.jsonl")
    _make_model(training_problems, folder / "model", seed, console)


def seed_of(folder: Path) -> int | None:
    """The seed that this folder was prepared with; none if it was not."""
    try:
        return int((folder / SEED_FILE).read_text())
    except (OSError, ValueError):
        return None


def _make_model(problems: list[Problem], folder: Path, seed: int, console: Console) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=seed)
    with Bar(console=console) as bar:
        row = bar.add_task("warm start on undecided traces", total=WARM_START_STEPS)

        def on_step(step: int, loss: float) -> None:
            bar.update(row, completed=step + 1, description=f"warm start on undecided traces, loss {loss:.3f}")

        warm_start(model, tokenizer, problems, steps=WARM_START_STEPS, seed=seed, on_step=on_step)
    save(model, tokenizer, folder)


if __name__ == "__main__":
    main()

"""The demo's command line."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from demo.prepare import seed_of


def parse_arguments(description: str | None, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=description)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything the demo makes")
    parser.add_argument("--data", type=Path, help="real problems (.parquet, .jsonl) to grade the trained model on")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks, the model, its warm start and the sampling")
    services = parser.add_argument_group("with services that run already, these three instead of child processes")
    services.add_argument("--prepared", type=Path, metavar="DIR", help="made by demo.prepare; vLLM serves its model")
    services.add_argument("--executor-url", metavar="URL", help="its key comes from CELLAR_API_KEY")
    services.add_argument("--vllm-url", metavar="URL", help="its key comes from CELLAR_VLLM_KEY")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes to demo/config.toml")
    options = parser.parse_args(arguments)
    if mistake := _mistake(options):
        parser.error(mistake)
    return options


def _mistake(options: argparse.Namespace) -> str | None:
    prepared: Path | None = options.prepared
    given = [value is not None for value in (prepared, options.executor_url, options.vllm_url)]
    if any(given) and not all(given):
        return "--prepared, --executor-url and --vllm-url go together"
    if prepared is not None and seed_of(prepared) != options.seed:
        return f"--prepared: {prepared} was not made by demo.prepare with --seed {options.seed}"
    if os.path.ismount(options.out):
        return f"--out: {options.out} is a mount point, which cannot be moved aside: name a folder in it"
    if options.data is not None and not options.data.is_file():
        return f"there is no file {options.data}"
    return None

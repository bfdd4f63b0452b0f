"""The learning curves of runs: reward, deferral rate and runs per trajectory, step by step.

python -m demo.plot runs/demo-0 runs/demo-1 runs/demo-2 --out curves.svg
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")  # no display is needed to write a file

from matplotlib import pyplot

PANELS = (("reward", "reward_mean"), ("deferral rate", "deferral_rate"), ("runs per trajectory", "runs_per_trajectory"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.plot", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, as the demo leaves it")
    parser.add_argument("--out", type=Path, required=True, help="the figure, .svg or .png")
    options = parser.parse_args()
    plot_runs(options.runs, options.out)


def plot_runs(runs: Sequence[Path], image: Path) -> None:
    """One panel per measure, with a thin line for each run and, of several runs, a thick one for their mean."""
    curves = [_rows(run) for run in runs]
    pyplot.rcParams["svg.hashsalt"] = "cellar"  # the same runs, the same file
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(9, 2.6), layout="constrained")
    for axes, (title, metric) in zip(panels, PANELS, strict=True):
        for rows in curves:
            axes.plot(
                [row["step"] for row in rows],
                [row[metric] for row in rows],
                color="tab:blue",
                linewidth=1,
                alpha=0.4 if len(curves) > 1 else 1,
            )
        if len(curves) > 1:
            shared = list(zip(*curves, strict=False))  # the steps that all runs have
            axes.plot([step[0]["step"] for step in shared], [fmean(row[metric] for row in step) for step in shared])
        axes.set(title=title, xlabel="step", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    figure.savefig(image, dpi=120, metadata={"Date": None} if image.suffix == ".svg" else None)
    pyplot.close(figure)


def _rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()

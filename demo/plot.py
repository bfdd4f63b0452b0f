"""`reward.png`: the reward, the deferral rate and the runs per trajectory, step by step."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed to write a file

from matplotlib import pyplot


def plot_metrics(metrics_path: Path, image_path: Path) -> None:
    rows = [json.loads(line) for line in metrics_path.read_text().splitlines()]
    steps = [row["step"] for row in rows]
    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 6), layout="constrained")
    top.plot(steps, [row["reward_mean"] for row in rows], label="reward", color="tab:green")
    top.plot(steps, [row["deferral_rate"] for row in rows], label="deferral rate", color="tab:blue")
    top.set_ylim(0, 1)
    bottom.plot(steps, [row["runs_per_trajectory"] for row in rows], label="runs per trajectory", color="tab:orange")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("step")
    for axes in (top, bottom):
        axes.legend(loc="best")
        axes.grid(alpha=0.3)
    figure.suptitle("Learning when to ask: a*b+c*d, three cells, one run")
    figure.savefig(image_path, dpi=120)
    pyplot.close(figure)

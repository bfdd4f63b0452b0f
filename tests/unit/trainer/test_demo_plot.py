"""The figure of the demo's learning curves."""

import json
from pathlib import Path

import pytest

from demo.plot import main


def run_of(folder: Path, steps: int) -> Path:
    folder.mkdir()
    rows = [
        {"step": step, "reward_mean": step / 10, "deferral_rate": 0.5, "runs_per_trajectory": 1.0}
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_curves_of_runs_of_different_lengths_are_one_small_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [str(run_of(tmp_path / name, steps)) for name, steps in (("a", 3), ("b", 5))]
    drawn = []
    for name in ("once.svg", "again.svg", "one.png"):
        image = tmp_path / name
        monkeypatch.setattr("sys.argv", ["plot", *(runs if image.suffix == ".svg" else runs[:1]), "--out", str(image)])
        main()
        drawn.append(image.read_bytes())
    assert drawn[0] == drawn[1]
    assert drawn[2].startswith(b"\x89PNG")
    assert all(len(image) < 100_000 for image in drawn)
    for title in (b"reward", b"deferral rate", b"runs per trajectory"):
        assert b"<!-- " + title + b" -->" in drawn[0]

"""`cellar-trainer study equivalence --quick`, from end to end: twice, then with other settings."""

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from cellar_trainer import cli
from cellar_trainer.study.variants import AGAIN, VARIANTS


def study(out: Path, *arguments: str) -> Result:
    command = ["study", "equivalence", "--out", str(out), "--processes", "1", *arguments]
    return CliRunner().invoke(cli.app, command)


def test_quick_study_reports_goes_on_and_refuses_other_settings(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"

    first = study(tmp_path, "--quick", "--seeds", "1")

    assert first.exit_code == 0, first.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["learning"]) == {*VARIANTS, AGAIN}
    assert all(sizes["gate_logit"] < 1e-13 for sizes in report["logits"]["exact"].values())
    text = (tmp_path / "report.md").read_text()
    assert all(f"| {variant} |" in text for variant in VARIANTS)
    for image in ("learning.png", "gates.png", "rates.png"):
        assert (tmp_path / image).read_bytes().startswith(b"\x89PNG")

    # A kill in the midst of a line: that piece is done again, and only that one.
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:-1]) + lines[-1][:20])
    assert study(tmp_path, "--quick", "--seeds", "1").exit_code == 0
    again = results.read_text().splitlines(keepends=True)
    assert again[:-1] == lines[:-1]
    assert json.loads(again[-1]) | {"seconds": 0} == json.loads(lines[-1]) | {"seconds": 0}
    assert json.loads((tmp_path / "report.json").read_text())["learning"] == report["learning"]

    other = study(tmp_path, "--seeds", "1")
    assert other.exit_code == 2
    assert "other settings" in other.output
    assert results.read_text() == "".join(again)

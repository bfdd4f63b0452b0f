"""The demo's command lines: with services of its own, and with those that run already."""

from pathlib import Path

import pytest

from demo import prepare
from demo.options import parse_arguments

EXECUTOR, VLLM = ("--executor-url", "http://gateway:8080"), ("--vllm-url", "http://vllm:8000")


def prepare_main(monkeypatch: pytest.MonkeyPatch, out: Path, *, seed: int = 0) -> None:
    """With a warm start of a few steps: what is looked at is the folder."""
    monkeypatch.setattr(prepare, "WARM_START_STEPS", 4)
    monkeypatch.setattr("sys.argv", ["prepare", "--out", str(out), "--seed", str(seed)])
    prepare.main()


def prepared(folder: Path, seed: int = 0) -> str:
    folder.mkdir()
    (folder / prepare.SEED_FILE).write_text(str(seed))
    return str(folder)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(None, arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_without_options_it_starts_everything_itself() -> None:
    options = parse_arguments(None, [])
    assert (options.out, options.seed, options.changes) == (Path("runs/demo"), 0, [])
    assert options.prepared is options.executor_url is options.vllm_url is None


def test_services_that_run_already_are_taken_with_what_was_prepared_for_them(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "prepared", seed=3)
    options = parse_arguments(None, ["--prepared", folder, *EXECUTOR, *VLLM, "--seed", "3", "train.steps=2"])
    assert (options.executor_url, options.vllm_url) == (EXECUTOR[1], VLLM[1])
    assert (options.prepared, options.changes) == (Path(folder), ["train.steps=2"])


@pytest.mark.parametrize("given", [EXECUTOR, VLLM, (*EXECUTOR, *VLLM), ("--prepared", "x"), ("--prepared", "x", *VLLM)])
def test_one_without_the_others_is_refused(given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--prepared, --executor-url and --vllm-url go together" in refusal(capsys, *given)


@pytest.mark.parametrize("made_with", [1, None])
def test_another_seeds_model_is_refused(
    made_with: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path) if made_with is None else prepared(tmp_path / "prepared", made_with)
    refused = refusal(capsys, "--prepared", folder, *EXECUTOR, *VLLM)
    assert f"{folder} was not made by demo.prepare with --seed 0" in refused


def test_a_mount_point_is_refused_since_it_cannot_be_moved_aside(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/proc is a mount point" in refusal(capsys, "--out", "/proc")


def test_tasks_and_model_are_prepared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "demo"
    prepare_main(monkeypatch, out, seed=1)
    assert {path.name for path in out.iterdir()} == {"train.jsonl", "held_out.jsonl", "model", "seed"}
    assert list(out.parent.iterdir()) == [out]
    made = (out / "model" / "model.safetensors").stat()
    prepare_main(monkeypatch, out, seed=1)
    assert (out / "model" / "model.safetensors").stat() == made
    assert "already" in capsys.readouterr().out


def test_another_seeds_folder_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path / "demo", seed=1)
    with pytest.raises(SystemExit):
        prepare_main(monkeypatch, tmp_path / "demo")
    assert "was not prepared with seed 0" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["seed"]


def test_what_was_not_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(prepare, "save", full)
    with pytest.raises(OSError, match="no space left"):
        prepare_main(monkeypatch, tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []

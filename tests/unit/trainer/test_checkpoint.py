"""Checkpoints are whole or not there."""

from pathlib import Path

import pytest
import torch

from cellar_trainer import checkpoint
from cellar_trainer.checkpoint import Position
from cellar_trainer.learning.learner import Learner, OptimiserOptions
from cellar_trainer.learning.model import control_tokens, load_model
from cellar_trainer.learning.objectives import ObjectiveOptions
from cellar_trainer.rollouts.collect import Collection
from cellar_trainer.types import Group, Segment, SegmentKind, StopReason, Task, Trajectory
from tests.tiny_model import TRIGGER, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def learner() -> Learner:
    tokens = control_tokens(TOKENIZER, TRIGGER)
    return Learner(tiny_model(), tokens, ObjectiveOptions(), OptimiserOptions(), temperature=1.0)


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, learner(), TOKENIZER, Position(step, 10 * step, {"a": 1}), keep=keep)


def test_a_checkpoint_is_a_model_folder_with_its_position(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    assert path == checkpoint.latest(tmp_path)
    assert checkpoint.position(path) == Position(3, 30, {"a": 1})
    loaded = load_model(path, dtype="float32", device="cpu")
    for name, weight in tiny_model().state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])
    assert (path / "tokenizer.json").exists()


def test_what_was_sampled_ahead_comes_back_exactly(tmp_path: Path) -> None:
    sampled = Segment(SegmentKind.SAMPLED, (3, 4), (-0.1, -1 / 3), (-100.0, -2e-30), (7, 8))
    played = Trajectory(
        Task("t", "1+1", "2"), [Segment(SegmentKind.PROMPT, (1,)), sampled], StopReason.VOID, reward=1.0
    )
    ahead = Collection([Group("0:t", [played])], [played])
    ahead.dropped["groups_small"] = 2
    ahead.grades["correct"] = 1

    path = checkpoint.save(tmp_path, learner(), TOKENIZER, Position(1), ahead=ahead, keep=2)

    assert checkpoint.sampled_ahead(path) == ahead
    assert checkpoint.sampled_ahead(save(tmp_path, 2)) is None


def test_only_the_newest_are_kept_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save(tmp_path, step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000010", "step-000011"]


def test_a_checkpoint_whose_writing_was_cut_short_is_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = save(tmp_path, 1)

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, 2)
    assert checkpoint.latest(tmp_path) == whole
    assert save(tmp_path, 2) == checkpoint.latest(tmp_path)


def test_the_generators_go_on_where_they_were(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    expected = torch.rand(3)
    fresh = learner()
    torch.manual_seed(123)
    checkpoint.restore(path, fresh)
    assert torch.equal(torch.rand(3), expected)


def test_it_says_nothing_of_the_gpus_it_was_written_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state()] * 8)
    state = torch.load(save(tmp_path, 1) / "training.pt", weights_only=True)
    assert state["rng"].keys() == {"cpu"}


def test_a_step_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    before = (path / "training.pt").stat()
    assert save(tmp_path, 1) == path
    after = (path / "training.pt").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_there_is_no_latest_where_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none") is None

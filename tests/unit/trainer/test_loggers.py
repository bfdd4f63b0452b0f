"""Loggers that a run asks for, spoken to through modules of the same API as wandb's and trackio's."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cellar_trainer.rollouts.rendering import Renderer, RenderingOptions
from cellar_trainer.telemetry.loggers import LoggerUnavailable, LogOptions, open_loggers
from cellar_trainer.telemetry.metrics import RunLog
from tests.tiny_model import tiny_tokenizer

BOTH = LogOptions(to=("wandb", "trackio"), project="p")


class Service:
    """A module `wandb` or `trackio`: remembers how it was called; `broken` calls raise."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished: list[dict[str, Any]] = []
        self.broken: set[str] = set()

    def init(self, **arguments: Any) -> "Service":
        self._called("init")
        self.started.append(arguments)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._called("log")
        self.logged.append((step, metrics))

    def finish(self, **arguments: Any) -> None:
        self._called("finish")
        self.finished.append(arguments)

    def _called(self, name: str) -> None:
        if name in self.broken:
            raise ConnectionError(f"{name} cannot be reached")


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, Service]:
    services: dict[str, Service] = {name: Service() for name in BOTH.to}
    for name, service in services.items():
        module = ModuleType(name)
        module.init = service.init  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    return services


@pytest.fixture
def wandb(services: dict[str, Service]) -> Service:
    return services["wandb"]


@pytest.fixture
def trackio(services: dict[str, Service]) -> Service:
    return services["trackio"]


def test_each_logger_gets_each_step_and_is_closed(wandb: Service, trackio: Service, tmp_path: Path) -> None:
    with open_loggers(BOTH, tmp_path / "first", {"train": {"steps": 2}}) as loggers:
        loggers.step(1, {"loss": 0.5})
        loggers.step(2, {"loss": 0.25})
    for service in (wandb, trackio):
        assert service.logged == [(1, {"loss": 0.5}), (2, {"loss": 0.25})]
        assert (service.started[0]["project"], service.started[0]["config"]) == ("p", {"train": {"steps": 2}})
    assert wandb.started[0]["name"] == "first"
    assert (wandb.finished, trackio.finished) == ([{"exit_code": 0}], [{}])


def test_nobody_is_called_who_was_not_asked_for(wandb: Service, trackio: Service, tmp_path: Path) -> None:
    with open_loggers(LogOptions(), tmp_path / "first", {}) as loggers:
        loggers.step(1, {"loss": 0.5})
    assert not wandb.started + trackio.started
    assert not (tmp_path / "first").exists()


def test_a_resumed_run_is_the_same_run_and_another_folder_is_another(
    wandb: Service, trackio: Service, tmp_path: Path
) -> None:
    named = LogOptions(to=BOTH.to, name="a / b")  # neither service takes all characters in an id
    for folder in ("first", "first", "second"):
        with open_loggers(named, tmp_path / folder, {}):
            pass
    first, again, other = (call["id"] for call in wandb.started)
    assert first == again != other
    assert first.startswith("a-b-")
    assert [call["name"] for call in trackio.started] == [first, first, other]
    assert {call["resume"] for call in wandb.started + trackio.started} == {"allow"}


def test_what_is_not_installed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(LoggerUnavailable) as error, open_loggers(LogOptions(to=("wandb",)), tmp_path, {}):
        pass
    assert str(error.value) == "log.to: wandb is not installed (pip install wandb)"


def test_what_does_not_start_is_said_and_the_others_are_closed(
    wandb: Service, trackio: Service, tmp_path: Path
) -> None:
    trackio.broken = {"init"}
    with pytest.raises(LoggerUnavailable) as error, open_loggers(BOTH, tmp_path, {}):
        pass
    assert str(error.value) == "log.to: trackio did not start: init cannot be reached"
    assert wandb.finished == [{"exit_code": 1}]


def test_a_run_that_ends_in_an_error_is_closed_as_failed(wandb: Service, trackio: Service, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_loggers(BOTH, tmp_path, {}):
        _ = 1 / 0
    assert wandb.finished == [{"exit_code": 1}]
    assert trackio.finished == [{}]


def test_one_that_fails_stops_nothing_is_warned_of_once_and_counted(
    wandb: Service, trackio: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renderer = Renderer(tiny_tokenizer(), RenderingOptions(chat_template=False))
    wandb.broken = {"log", "finish"}
    with open_loggers(BOTH, tmp_path, {}) as loggers, RunLog(tmp_path, renderer, loggers=loggers) as log:
        for step in (1, 2):
            log.step(step, {"loss": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["log_failures/wandb"] for row in rows] == [1.0, 2.0]
    assert [row["log_failures/trackio"] for row in rows] == [0.0, 0.0]
    assert [step for step, _ in trackio.logged] == [1, 2]
    assert len(trackio.finished) == 1
    assert len(caplog.records) == 1
    assert "wandb" in caplog.text

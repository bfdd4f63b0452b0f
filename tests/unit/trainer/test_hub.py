"""Names on the hub, with the hub's own client, against a server that speaks its routes."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from cellar_trainer.data.hub import HubError, fetch
from cellar_trainer.data.tasks import TaskFileError, load_tasks
from tests.hub_server import COMMIT, Hub, hub_of

SUFFIXES = (".parquet", ".jsonl")


def parquet(*problems: str) -> bytes:
    file = io.BytesIO()
    rows = [{"problem": problem, "answer": "1"} for problem in problems]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


FILES = {
    "README.md": b"words",
    "data/train-00000-of-00002.parquet": parquet("a", "b"),
    "data/train-00001-of-00002.parquet": parquet("c"),
    "data/test-00000-of-00001.parquet": parquet("d"),
    "more/0000.parquet": parquet("e"),
    "lines.jsonl": b'{"problem": "f", "answer": "1"}\n',
}


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives the function that sends the hub's client to an address; the environment is read when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def go_to(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")

    return go_to


@pytest.fixture
def hub(client: Callable[[str], None]) -> Iterator[Hub]:
    with hub_of("org/sums", FILES) as hub:
        client(hub.url)
        yield hub


@pytest.mark.parametrize(
    ("path", "problems"),
    [
        ("data/train-00001-of-00002.parquet", "c"),
        ("data/train", "abc"),
        ("data/test", "d"),
        ("more", "e"),
        ("more/", "e"),
        ("lines", "f"),
        ("lines.jsonl", "f"),
    ],
)
def test_a_path_names_a_file_a_split_or_a_folder(hub: Hub, path: str, problems: str) -> None:
    assert [task.problem for task in load_tasks(f"hf://datasets/org/sums@main/{path}")] == list(problems)


def test_a_data_set_of_one_split_needs_no_path(client: Callable[[str], None]) -> None:
    with hub_of("org/sums", {"train.parquet": parquet("a")}, revision="refs/convert/parquet") as hub:
        client(hub.url)
        assert [task.task_id for task in load_tasks("hf://datasets/org/sums@refs/convert/parquet")] == ["train:1"]


TWICE = {
    "train.jsonl": b'{"problem": "a", "answer": "1"}\n',
    "train-00000-of-00002-0123456789abcdef.parquet": parquet("b"),
    "train-00001-of-00002-fedcba9876543210.parquet": parquet("c"),
    "test.jsonl": b'{"problem": "d", "answer": "1"}\n',
}


def test_a_split_that_is_there_in_two_kinds_of_file_is_loaded_once(client: Callable[[str], None]) -> None:
    name = "hf://datasets/org/sums"
    with hub_of("org/sums", TWICE) as hub:
        client(hub.url)
        with pytest.raises(HubError, match=f"Name one of {name}/test, {name}/train.jsonl, {name}/train.parquet$"):
            fetch(name, SUFFIXES)
        with pytest.raises(HubError, match=f"Name one of {name}/train.jsonl, {name}/train.parquet$"):
            fetch(f"{name}/train", SUFFIXES)
        for split, problems in (("test", "d"), ("train.jsonl", "a"), ("train.parquet", "bc")):
            assert [task.problem for task in load_tasks(f"{name}/{split}")] == list(problems)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://datasets/org/sums", "which split[?] Name one of hf://datasets/org/sums/data/test, hf://.*/data/train, "),
        ("hf://datasets/org/sums@main/data", "which split[?] Name one of hf://datasets/org/sums@main/data/test, "),
        ("hf://datasets/org/sums/none", "no file of a kind that can be read; there are data/test-"),
        ("hf://datasets/org/sums/none.parquet", "no file of a kind that can be read; there are data/test-"),
        ("hf://datasets/org/sums@v2/data/train", "no such revision"),
        ("hf://datasets/org/sums@v2/lines.jsonl", "no such revision"),
        ("hf://datasets/org/other", "no such data set on the hub, or it is private"),
        ("hf://datasets/org/other/x.parquet", "no such data set on the hub, or it is private"),
        ("hf://datasets/a--b/sums/x.jsonl", "no data set on the hub can be called that: "),
        ("hf://datasets/a--b/sums", "no data set on the hub can be called that: "),
        ("hf://org/sums", r"a name on the hub has the form hf://datasets/ORG/NAME\[@REVISION\]"),
        ("hf://datasets/sums", r"a name on the hub has the form hf://datasets/ORG/NAME\[@REVISION\]"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, name: str, message: str) -> None:
    with pytest.raises(TaskFileError, match=f"^{name}: {message}"):
        load_tasks(name)


def test_a_file_that_was_fetched_before_is_had_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    [first] = fetch("hf://datasets/org/sums/lines.jsonl", SUFFIXES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert fetch("hf://datasets/org/sums/lines.jsonl", SUFFIXES) == [first]
    assert COMMIT in str(first)
    assert [line for line in hub.asked if "resolve" in line] == [
        "HEAD /datasets/org/sums/resolve/main/lines.jsonl",
        "GET /datasets/org/sums/resolve/main/lines.jsonl",
    ]
    with pytest.raises(HubError, match="the hub cannot be reached, and there is no copy from before"):
        fetch("hf://datasets/org/sums/data/test-00000-of-00001.parquet", SUFFIXES)
    with pytest.raises(HubError, match="the hub does not answer as it should"):
        fetch("hf://datasets/org/sums/data/test", SUFFIXES)


def test_the_endpoint_is_the_one_of_the_environment(hub: Hub, tmp_path: Path) -> None:
    script = (
        "from cellar_trainer.data.tasks import load_tasks; print(len(load_tasks('hf://datasets/org/sums/data/train')))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    shown = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)

    assert shown.stdout == "3\n"


@pytest.mark.parametrize("path", ["", "/train.parquet"])
def test_a_hub_that_cannot_be_reached_is_said(
    client: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    client("http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its own retries

    with pytest.raises(HubError, match="the hub "):
        fetch(f"hf://datasets/org/sums{path}", SUFFIXES)

"""Files of data sets on the Hugging Face hub, through its own client: cached, with its tokens and its `HF_ENDPOINT`."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of whatever transport the client has
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

SCHEME = "hf://"
FORM = "hf://datasets/ORG/NAME[@REVISION][/path/in/repo]"

_NAME = re.compile(
    r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>refs/(convert|pr)/[^/]+|[^/]+))?(/(?P<path>.*))?"
)
_SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")
"""With a digest in older data sets."""


class HubError(Exception):
    """A data set on the hub that cannot be had; the message says why and what would help."""


def fetch(name: str, suffixes: Sequence[str]) -> list[Path]:
    """The files that `name` stands for, as local copies.

    A path in the repository names a file, a folder, or a split that lies in several files ("data/train" for
    data/train-00000-of-00002.parquet and the next; "data/train.parquet" where there is a "data/train.jsonl" as well).
    A file that was fetched before is had without a network, when its whole path is given. Raises `HubError`, also when
    the name leaves more than one split to choose from.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise HubError(f"{name}: a name on the hub has the form {FORM}")
    repository, revision, path = match["repository"], match["revision"], (match["path"] or "").strip("/")
    api = HfApi()

    def download(file: str) -> Path:
        return Path(api.hf_hub_download(repository, file, repo_type="dataset", revision=revision))

    try:
        if path.endswith(tuple(suffixes)):
            with suppress(RemoteEntryNotFoundError):  # it may still be a split in several files
                return [download(path)]
        every = api.list_repo_files(repository, repo_type="dataset", revision=revision)
        return [download(file) for file in _choose([f for f in every if f.endswith(tuple(suffixes))], path, name)]
    except (OSError, HTTPError, HFValidationError) as error:
        raise HubError(f"{name}: {_reason(error)}") from error


def _choose(files: Sequence[str], path: str, name: str) -> list[str]:
    wanted = sorted(f for f in files if not path or f.startswith(f"{path}/") or path in _names(f))
    splits = sorted({_names(f) for f in wanted})
    if not splits:
        raise HubError(f"{name}: no file of a kind that can be read; there are {', '.join(sorted(files)) or 'none'}")
    if len(splits) > 1:
        whole = name.removesuffix("/").removesuffix(path).removesuffix("/")
        kinds = Counter(short for short, _ in splits)
        shown = (f"{whole}/{short if kinds[short] == 1 else full}" for short, full in splits)
        raise HubError(f"{name}: which split? Name one of {', '.join(shown)}")
    return wanted


def _names(file: str) -> tuple[str, str]:
    """What the files of one split have in common: "data/train-00000-of-00002.parquet" and "train/0000.parquet" are
    "data/train" and "train", and with the suffix, which tells it from the same problems in another kind of file."""
    path = Path(file)
    split = str(path.parent) if path.stem.isdigit() else str(path.with_name(_SHARD.sub("", path.stem)))
    return split, split + path.suffix


def _reason(error: Exception) -> str:
    match error:
        case RepositoryNotFoundError():
            return "no such data set on the hub, or it is private or gated and needs HF_TOKEN"
        case RevisionNotFoundError():
            return "no such revision"
        case LocalEntryNotFoundError():
            return f"the hub cannot be reached, and there is no copy from before: {error}"
        case HFValidationError():
            return f"no data set on the hub can be called that: {error}"
        case ConnectionError() | HTTPError():
            return f"the hub does not answer as it should: {error}"
        case _:
            return str(error)

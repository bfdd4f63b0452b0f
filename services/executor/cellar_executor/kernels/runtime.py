"""What a Python environment needs of the file system to run: the only trees of the host that a jail sees."""

import asyncio
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellar_executor.kernel import IsolationUnavailable

_DESCRIBE = """
import json, sys, sysconfig
variables = sysconfig.get_config_vars()
print(json.dumps({
    "base_executable": sys._base_executable,
    "environment": sys.prefix if sys.prefix != sys.base_prefix else None,
    "import_path": sys.path,
    "library": variables.get("INSTSONAME"),
    "library_folders": [variables.get("LIBDIR"), f"{sys.base_prefix}/lib"],
    "stdlib": sysconfig.get_path("stdlib"),
}))
"""
SYSTEM_LIBRARIES = tuple(map(Path, ("/usr/lib", "/usr/lib64", "/lib", "/lib64")))


@dataclass(frozen=True, slots=True)
class Runtime:
    """A Python executable, by its absolute path, and the files and folders without which it does not start."""

    python: Path
    trees: tuple[Path, ...]


async def inspect_runtime(python: Path) -> Runtime:
    """Ask the Python of `python` where it lives. Raises `IsolationUnavailable` when it does not run."""
    command = (str(python), "-I", "-c", _DESCRIBE)
    try:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env={})
    except OSError as exc:
        raise IsolationUnavailable(f"the runtime {python} does not start ({exc.strerror}); run `make setup`") from exc
    answer, _ = await process.communicate()
    if process.returncode != 0:
        raise IsolationUnavailable(f"the runtime {python} does not run; rebuild it with `make setup`")
    return describe_runtime(python, json.loads(answer))


def describe_runtime(python: Path, facts: Mapping[str, Any]) -> Runtime:
    python, base = python.absolute(), Path(facts["base_executable"])
    folders = [facts["environment"], facts["stdlib"], *facts["import_path"]]
    # A Python that was moved since it was built has its library below its prefix, not where it was configured to be.
    libraries = [f"{folder}/{facts['library']}" for folder in facts["library_folders"]]
    found = [*folders, *libraries, *links(python), *links(base)]
    return Runtime(python, outermost(Path(path) for path in found if path and os.path.exists(path)))


def links(path: Path) -> Iterator[Path]:
    """The path and, while it is a symbolic link, what it points to: a jail needs every one of them by its name."""
    yield path
    while path.is_symlink():
        path = Path(os.path.normpath(path.parent / path.readlink()))
        yield path


def outermost(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Without duplicates, without what lies inside another one, and without what the system libraries bring anyway."""
    kept: list[Path] = []
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(parent) for parent in (*kept, *SYSTEM_LIBRARIES)):
            kept.append(path)
    return tuple(kept)

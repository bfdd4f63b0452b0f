import sys
from pathlib import Path

import pytest

from cellar_executor.kernel import IsolationUnavailable
from cellar_executor.kernels.runtime import describe_runtime, inspect_runtime, links, outermost


async def test_a_runtime_is_found_with_its_environment_and_its_base() -> None:
    runtime = await inspect_runtime(Path(sys.executable))
    inside = [tree for tree in runtime.trees if Path(sys.executable).is_relative_to(tree)]
    assert len(inside) == 1
    assert any(Path(pytest.__file__).is_relative_to(tree) for tree in runtime.trees)
    assert not any(Path.home() == tree or tree == Path("/") for tree in runtime.trees)


def test_the_library_of_a_python_that_was_moved_is_found_below_its_prefix(tmp_path: Path) -> None:
    library, python = tmp_path / "lib/libpython3.12.so.1.0", tmp_path / "bin/python3.12"
    for path in (library, python):
        path.parent.mkdir()
        path.touch()
    facts = {
        "base_executable": str(python),
        "environment": None,
        "import_path": [],
        "library": library.name,
        "library_folders": ["/where/it/was/built", str(library.parent)],
        "stdlib": None,
    }
    assert library in describe_runtime(python, facts).trees


def test_every_name_on_the_way_to_the_executable_is_needed(tmp_path: Path) -> None:
    (tmp_path / "python3.12").touch()
    (tmp_path / "python3").symlink_to("python3.12")
    (tmp_path / "env").mkdir()
    (tmp_path / "env/python").symlink_to(tmp_path / "env/../python3")
    assert [*links(tmp_path / "env/python")] == [tmp_path / name for name in ("env/python", "python3", "python3.12")]


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
async def test_a_runtime_that_does_not_run_is_refused_with_the_command_that_mends_it(python: str) -> None:
    with pytest.raises(IsolationUnavailable, match="make setup"):
        await inspect_runtime(Path(python))


def test_a_tree_inside_another_or_in_the_system_libraries_is_not_listed_twice() -> None:
    paths = [Path("/a/b"), Path("/a"), Path("/a"), Path("/ab"), Path("/usr/lib/python3.12")]
    assert outermost(paths) == (Path("/a"), Path("/ab"))

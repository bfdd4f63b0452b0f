import sys
from pathlib import Path

import pytest

from cellar_executor.kernel import IsolationUnavailable
from cellar_executor.kernels.runtime import inspect_runtime, outermost


async def test_a_runtime_is_found_with_its_environment_and_its_base() -> None:
    runtime = await inspect_runtime(Path(sys.executable))
    inside = [tree for tree in runtime.trees if Path(sys.executable).is_relative_to(tree)]
    assert len(inside) == 1
    assert any(Path(pytest.__file__).is_relative_to(tree) for tree in runtime.trees)
    assert not any(Path.home() == tree or tree == Path("/") for tree in runtime.trees)


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
async def test_a_runtime_that_does_not_run_is_refused_with_the_command_that_mends_it(python: str) -> None:
    with pytest.raises(IsolationUnavailable, match="make setup"):
        await inspect_runtime(Path(python))


def test_a_tree_inside_another_or_in_the_system_libraries_is_not_listed_twice() -> None:
    paths = [Path("/a/b"), Path("/a"), Path("/a"), Path("/ab"), Path("/usr/lib/python3.12")]
    assert outermost(paths) == (Path("/a"), Path("/ab"))

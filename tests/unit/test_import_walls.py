"""Who may not know whom: a fresh interpreter imports a package and says what came with it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINER_PYTHON = ROOT / ".venv" / "envs" / "trainer" / "bin" / "python"


def imported_with(python: Path, module: str) -> set[str]:
    """Top-level packages in memory once `module` and everything below it is imported."""
    script = (
        "import importlib, json, pkgutil, sys\n"
        f"module = importlib.import_module({module!r})\n"
        "for found in pkgutil.walk_packages(getattr(module, '__path__', []), module.__name__ + '.'):\n"
        "    if not found.name.endswith(('__main__', 'kernel_main')): importlib.import_module(found.name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_executor_needs_no_torch() -> None:
    imported = imported_with(Path(sys.executable), "cellar_executor")
    assert {"cellar_client", "fastapi", "redis"} <= imported
    assert not {"torch", "transformers", "vllm", "cellar_trainer"} & imported


def test_the_client_needs_neither_server_nor_torch() -> None:
    imported = imported_with(Path(sys.executable), "cellar_client")
    assert {"aiohttp", "urllib3"} <= imported
    assert not {"fastapi", "starlette", "uvicorn", "redis", "torch", "cellar_executor", "cellar_trainer"} & imported


@pytest.mark.skipif(not TRAINER_PYTHON.exists(), reason="the trainer's environment is not built")
def test_the_trainer_needs_no_server_and_no_model_server() -> None:
    imported = imported_with(TRAINER_PYTHON, "cellar_trainer")
    assert "torch" in imported
    assert not {"fastapi", "starlette", "uvicorn", "redis", "vllm", "cellar_executor"} & imported


def test_only_the_store_knows_redis() -> None:
    package = ROOT / "services" / "executor" / "cellar_executor"
    knowing = {path.parent for path in package.rglob("*.py") if "redis" in imports_of(path)}
    assert knowing == {package / "store"}


def test_only_http_knows_its_framework() -> None:
    package = ROOT / "services" / "executor" / "cellar_executor"
    knowing = {path for path in package.rglob("*.py") if {"fastapi", "starlette"} & imports_of(path)}
    assert knowing
    assert all(package / "http" in path.parents for path in knowing)


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}

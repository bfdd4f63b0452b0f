"""Seeds of a session's generators: those of the standard library, numpy and sympy, now or when they are imported.

Part of the kernel; standard library only.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SEEDED_MODULES = ("random", "numpy.random", "sympy.core.random")


def reseed(seed: int | None) -> None:
    """The global generators, those of libraries that are not loaded yet included; None: from the system."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, SeedOnImport)]
    for name in SEEDED_MODULES:
        if name in sys.modules:
            sys.modules[name].seed(seed)
    if seed is not None:
        sys.meta_path.insert(0, SeedOnImport(seed, [name for name in SEEDED_MODULES if name not in sys.modules]))


class SeedOnImport:
    """A finder that seeds a library's generator when it is imported: sessions that never import it pay nothing."""

    def __init__(self, seed: int, modules: Iterable[str]) -> None:
        self._seed = seed
        self._waiting = set(modules)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._waiting:
            return None
        from importlib.util import find_spec

        self._waiting.remove(name)
        spec = find_spec(name)
        if spec is not None:
            spec.loader = SeedingLoader(spec.loader, self._seed)  # type: ignore[assignment]  # duck-typed, see imports
        return spec


class SeedingLoader:
    def __init__(self, loader: Any, seed: int) -> None:
        self._loader = loader
        self._seed = seed

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.seed(self._seed)

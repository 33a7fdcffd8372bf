"""Tells joblib of the backend "shoal", when a program imports joblib.

The one idea: `import shoal` imports no other module, and joblib has no list of backends that an installed package could be in.
So joblib is told when it is imported: now, if it is there, else by a finder of modules that steps in once and leaves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "joblib"


def tell() -> None:
    """Tell joblib of the backend, at once or when joblib is imported. Telling it again changes nothing."""
    if (joblib := sys.modules.get(NAME)) is not None and hasattr(joblib, "register_parallel_backend"):
        _register(joblib)
    elif not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def _register(joblib: Any) -> None:
    if hasattr(joblib, "register_parallel_backend"):  # a file of the user's own may have this name
        joblib.register_parallel_backend("shoal", Factory())


class Factory:
    """Makes backends, which share their pools. It is the first to import them."""

    def __init__(self) -> None:
        self._pools: Any = None

    def __call__(self, **words: Any) -> Any:
        from shoal.tasks.backend import Backend
        from shoal.tasks.pools import Pools

        self._pools = self._pools or Pools()
        return Backend(self._pools, **words)


class Finder:
    """Finds joblib as the other finders do, and registers the backend when it has been loaded."""

    def __init__(self) -> None:
        self._asks = False  # True: the other finders are being asked

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != NAME or self._asks:
            return None
        self._asks = True
        try:
            others = (finder.find_spec(name, path, target) for finder in list(sys.meta_path))
            spec = next((found for found in others if found is not None), None)
        finally:
            self._asks = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def load(module: ModuleType) -> None:
                execute(module)
                if module.__name__ != NAME:  # one loader may load all modules of a zip file
                    return
                _register(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = load  # type: ignore[method-assign]  # of this module's own loader
        return spec

"""Acts on a module when a program imports it, without importing it.

The one idea: a package that must be told something has no list that another package could be in, and an import for its sake
costs every program. So a finder of modules steps in once, when the package is imported, and leaves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def when_imported(name: str, act: Callable[[Any], object]) -> None:
    """Call `act` with the module of this name: now if it is imported, else right after it was loaded. act: the same function
    for a name in all calls, which may be called again."""
    if (module := sys.modules.get(name)) is not None:
        act(module)
    elif not any(isinstance(finder, Finder) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder(name, act))


class Finder:
    """Finds a module as the other finders do, and acts on it when it has been loaded."""

    def __init__(self, name: str, act: Callable[[Any], object]) -> None:
        self.name, self.act = name, act
        self._asks = False  # True: the other finders are being asked

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name or self._asks:
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
                if module.__name__ != self.name:  # one loader may load all modules of a zip file
                    return
                self.act(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = load  # type: ignore[method-assign]  # of this module's own loader
        return spec

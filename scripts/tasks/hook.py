"""Tells joblib of the backend "shoal", when a program imports joblib.

The one idea: `import shoal` imports no other module, and joblib has no list of backends that an installed package could be in.
So joblib is told when it is imported: now, if it is there, else by a finder of modules that steps in once and leaves.
"""

from __future__ import annotations

from typing import Any

from shoal.protocol.imports import when_imported

NAME = "joblib"


def tell() -> None:
    """Tell joblib of the backend, at once or when joblib is imported. Telling it again changes nothing."""
    when_imported(NAME, _register)


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

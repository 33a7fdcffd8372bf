"""Runs CPython's own tests of executors (test.test_concurrent_futures) against `shoal.Pool`; exits with 0 if they pass, with
77 if this Python comes without them. A first argument names a folder that holds them.

The one idea: the tests know only `executor_type(max_workers=N)`, so the only thing of ours in here is that name of an argument.
"""

from __future__ import annotations

import importlib
import sys
import unittest
from types import ModuleType
from typing import Any

from shoal.tasks.pool import Pool

ABSENT = 77
ADAPTED = """
from shoal.tasks.pool import Pool
class {name}(Pool):
    def __init__(self, max_workers=None):
        super().__init__("auto" if max_workers is None else max_workers)
"""


class ShoalPool(Pool):
    def __init__(self, max_workers: int | None = None) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError("max_workers must be greater than 0")
        super().__init__("auto" if max_workers is None else max_workers)


def found(package: str) -> dict[str, tuple[Any, ModuleType]]:
    """Name -> class and module of the tests: one module up to Python 3.11, several from 3.12 on."""
    whole = importlib.import_module(package)
    parts = ("executor", "test_as_completed", "test_wait", "test_shutdown", "util")
    modules = [importlib.import_module(f"{package}.{part}") for part in parts] if hasattr(whole, "__path__") else [whole]
    return {name: (thing, module) for module in modules for name, thing in vars(module).items() if isinstance(thing, type)}


def adapt(module: ModuleType, package: str) -> None:
    """Let the programs that the tests start find the pool, where they import an executor of the standard library."""
    from test.support import script_helper

    def started(*words: str, **options: Any) -> Any:
        adapted = ADAPTED.format(name=ShoalPool.__name__)
        code = words[-1].replace(f"from concurrent.futures import {ShoalPool.__name__}\n", "pass\n")
        code = code.replace("from test.test_concurrent_futures", f"from {package}")
        before = f"import sys\nsys.path[:0] = {sys.path[:1]!r}\nexec({adapted!r})\n"
        return script_helper.assert_python_ok(*words[:-1], before + code, **options)

    vars(module)["assert_python_ok"] = started


def main(folder: str = "") -> int:
    package = "test_concurrent_futures" if folder else "test.test_concurrent_futures"
    sys.path[:0] = [folder] if folder else []
    try:
        from test import support

        if not hasattr(support, "Py_GIL_DISABLED"):  # tests of a newer Python look at it
            vars(support)["Py_GIL_DISABLED"] = False
        classes = found(package)
    except ModuleNotFoundError:
        return ABSENT
    support.use_resources = ["walltime", "cpu"]
    adapt(classes["ExecutorShutdownTest"][1], package)
    mixin, case = classes["ExecutorMixin"][0], classes["BaseTestCase"][0]
    ours = type("OurMixin", (mixin,), {"executor_type": ShoalPool})
    names = ("ExecutorTest", "AsCompletedTests", "WaitTests", "ExecutorShutdownTest")
    tests = [type(f"Pool{name}", (classes[name][0], ours, case), {"__module__": __name__}) for name in names]
    loader = unittest.defaultTestLoader
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(test) for test in tests)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    return 0 if result.wasSuccessful() and result.testsRun > 20 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Runs one case in a process of its own: `python -m shoal.benchmarks.alone MODULE:FUNCTION [--quick]`.

The one idea: no case inherits threads, memory or caches from another case, and a case that crashes ends no other case.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from shoal.benchmarks.case import Case, Finding


class CrashedError(Exception):
    """A case ended without a finding; stderr has its own error."""


def apart(case: Case, quick: bool) -> tuple[Finding, float]:
    """Returns the case's finding, measured in a fresh process, and the seconds of wall time. Raises CrashedError."""
    words = [sys.executable, "-m", "shoal.benchmarks.alone", f"{case.__module__}:{case.__qualname__}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    began = time.perf_counter()
    done = subprocess.run([*words, *["--quick"] * quick], stdout=subprocess.PIPE, text=True, env=environment, check=False)
    seconds = time.perf_counter() - began
    if done.returncode or not done.stdout.strip():
        raise CrashedError(f"exit status {done.returncode}")
    return Finding(**json.loads(done.stdout.strip().splitlines()[-1])), seconds


def main(arguments: Sequence[str]) -> int:
    module, _, function = arguments[0].partition(":")
    case: Any = getattr(importlib.import_module(module), function)
    print(json.dumps(asdict(case("--quick" in arguments))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

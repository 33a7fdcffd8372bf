"""Time to start: from the command to the first step, and until 16 actors have joined.

The one idea: a run writes each step at once into a file, with the number of actors; the case watches the file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from shoal.benchmarks.case import Finding
from shoal.benchmarks.timing import interleaved

FIRST_STEP = 3.0  # seconds beyond `import torch`
ALL_UP = 6.0
ACTORS = 16
TOO_LONG = 60.0
LOOK = 0.01  # seconds between two looks at the file


def startup(quick: bool) -> Finding:
    """Measures seconds from `shoal simulate digits` to its first step, less those of `import torch`: medians of repeats."""
    imported, first, up = interleaved(2 if quick else 5, _import_torch, _first_step, _all_up)
    beyond = first - imported
    return Finding(
        figure=beyond,
        unit="s from command to first step beyond `import torch`",
        goal=FIRST_STEP,
        floor=imported,
        holds=beyond <= FIRST_STEP and up <= ALL_UP,
        asked=f"at most {FIRST_STEP:g} s, and {ACTORS} actors up within {ALL_UP:g} s of the command",
        details={"import_torch_s": imported, "first_step_s": first, f"{ACTORS}_actors_up_s": up},
    )


def _import_torch() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def _first_step() -> float:
    return _until("2", lambda run: bool(_text(run / "metrics.jsonl")))


def _all_up() -> float:
    return _until(str(ACTORS), lambda run: _actors(_text(run / "metrics.jsonl")) >= ACTORS)


def _until(actors: str, there: Callable[[Path], bool]) -> float:
    """Returns seconds from the command until `there(run directory)` is true."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        run = Path(folder) / "run"
        words = ["simulate", "digits", "rounds=100000", "eval_every=0", "--actors", actors, "--quiet", "--run-dir", str(run)]
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "shoal", *words], stdout=subprocess.DEVNULL)
        try:
            while not there(run):
                _still_running(process)
                if time.perf_counter() - began > TOO_LONG:
                    raise RuntimeError(f"nothing to be seen after {TOO_LONG:g} s")
            return time.perf_counter() - began
        finally:
            process.terminate()
            process.wait()


def _still_running(process: subprocess.Popen[bytes]) -> None:
    """Waits LOOK seconds. Raises RuntimeError if the run has ended."""
    try:
        code = process.wait(LOOK)
    except subprocess.TimeoutExpired:
        return
    raise RuntimeError(f"the run ended with {code} before it was measured")


def _actors(rows: str) -> int:
    """Returns the number of actors in the last whole line of a metrics.jsonl."""
    whole = rows.rpartition("\n")[0].rpartition("\n")[2]
    return int(json.loads(whole)["actors"]) if whole else 0


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""

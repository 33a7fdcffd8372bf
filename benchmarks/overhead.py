"""Cost of the machinery in a synchronous round of small clients: Shoal with one actor against a plain torch loop.

The one idea: both run by turns in their own processes, on the same clients in the same order, and must end with the
same weights up to the rounding of sums. So the difference in time is the cost of the machinery.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal.benchmarks.case import Finding
from shoal.benchmarks.play import Played, simulated
from shoal.benchmarks.timing import interleaved

ROUNDS = 50
SKIP = 2  # rounds left out at the start, in which memory is first touched and processes start
MOST = 1.3
Weights = dict[str, npt.NDArray[np.float32]]


def round_overhead(quick: bool) -> Finding:
    """Measures seconds of a round (E=1, B=10, 50 rounds, cohort 10): medians over rounds and over interleaved repeats."""
    ended: dict[str, Weights] = {}

    def shoal(actors: int, *more: str) -> float:
        words = ("local_epochs=1", f"rounds={ROUNDS}", "eval_every=0", *more, "--seed", "0", "--actors", str(actors))
        with simulated("digits", *words, "--transport", "ipc") as run:
            ended["shoal"] = weights_of(run)
            return statistics.median(run.rounds(SKIP))

    def plain() -> float:
        with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
            words = [sys.executable, "-m", "shoal.benchmarks.plain_torch", folder, str(ROUNDS), "0"]
            told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
            with np.load(Path(folder) / "weights.npz", allow_pickle=False) as file:
                ended["plain"] = {name: file[name] for name in file.files}
            return float(statistics.median(json.loads(told)["rounds"][SKIP:]))

    ours, theirs, unwritten, alone = interleaved(
        2 if quick else 5,
        lambda: shoal(1),
        plain,
        lambda: shoal(1, "journal=off"),
        lambda: shoal(0, "journal=off"),
    )
    apart = max(float(np.abs(ended["shoal"][name] - ended["plain"][name]).max()) for name in ended["plain"])
    return Finding(
        figure=ours * 1e3,
        unit="ms a round",
        goal=MOST * theirs * 1e3,
        peer=theirs * 1e3,
        ratio=ours / theirs,
        holds=ours <= MOST * theirs and apart < 1e-3,
        asked=f"at most {MOST} times a plain torch loop, and the same weights after {ROUNDS} rounds",
        details={
            "peer": "plain torch loop",
            "largest_difference_of_a_weight": apart,
            "without_journal_ms": unwritten * 1e3,
            "without_journal_nor_sockets_ms": alone * 1e3,
        },
    )


def weights_of(run: Played) -> Weights:
    """Returns the weights of the newest checkpoint."""
    from safetensors.numpy import load_file

    newest = max(run.run.checkpoints.glob("*.safetensors"))
    return {name.rpartition("/")[2]: array for name, array in load_file(newest).items()}

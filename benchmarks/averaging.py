"""Rounds that FedAvg takes to an accuracy, by local epochs E and batch size B (McMahan et al. 2017, table 2): `fl-f`.

The one idea: more work of a client in a round saves rounds, in the order and by about the ratios of the paper's table. The data
are the 10,000 test images of MNIST (80 of them at each of 100 clients), where the paper has 600 at each, so a full batch makes
fewer steps here and the ratios are smaller.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shoal.benchmarks.case import Finding
from shoal.jobs.catalog import mnist
from shoal.protocol.errors import UserError

FOLDER = "SHOAL_MNIST"  # environment variable that names the folder of the IDX files
TARGET, QUICK_TARGET = 0.97, 0.85
FULL = 80  # examples of a client: a full batch
SLOW = 60  # rounds of the paper from which on every fifth round is evaluated
CASES = "E=5 B=10 fastest, E=1 B=full slowest, the others in the order of the paper"


class Local(NamedTuple):
    """A client's work in a round. paper: rounds to 99 % on the whole of MNIST, IID, CNN, at the paper's best learning rate.
    rates: learning rates that are tried, of which the one with the fewest rounds counts, as in the paper; a quick run tries the
    first alone. most: rounds after which a run gives up."""

    epochs: int
    batch: int
    paper: int
    rates: tuple[float, ...]
    most: int

    def __str__(self) -> str:
        return f"E={self.epochs} B={'full' if self.batch == FULL else self.batch}"


TABLE: Sequence[Local] = (
    Local(5, 10, 20, (0.1, 0.05, 0.2), 150),
    Local(5, 50, 29, (0.2, 0.1, 0.4), 300),
    Local(1, 10, 34, (0.1, 0.05, 0.2), 300),
    Local(1, 50, 65, (0.2, 0.1, 0.4), 600),
    Local(5, FULL, 179, (0.2, 0.1, 0.4), 600),
    Local(1, FULL, 626, (0.2, 0.1, 0.4), 1000),
)


def fl_f(quick: bool) -> Finding:
    """Counts rounds to 97 % of 2,000 held-out images, 100 clients, 10 in a round; quick: to 85 %, of three of the table."""
    asked, folder = f"the order of the FedAvg paper's table: {CASES}", os.environ.get(FOLDER, "data/mnist")
    table = [TABLE[0], TABLE[2], TABLE[-1]] if quick else TABLE
    target = QUICK_TARGET if quick else TARGET
    found: dict[Local, int] = {}
    rates: dict[str, dict[str, int | None]] = {}
    try:
        for local in table:
            found[local], rates[str(local)] = best_of(target, local, folder, local.rates[:1] if quick else local.rates)
            print(f"fl-f {local}: {found[local]} rounds; {rates[str(local)]}", file=sys.stderr, flush=True)
    except UserError as missing:
        return Finding(None, "rounds", asked=asked, details={"skipped": f"{missing}; or name the folder in ${FOLDER}"})
    slowest = found[table[-1]]
    return Finding(
        figure=found[table[0]],
        unit=f"rounds to {target:.0%} with E=5 B=10",
        ratio=slowest / found[table[0]],
        holds=in_order(found),
        asked=asked,
        details={
            "rounds": {str(local): rounds for local, rounds in found.items()},
            "rounds_by_lr": rates,
            "ratio_to_slowest": {str(local): slowest / rounds for local, rounds in found.items()},
            "paper": {str(local): local.paper for local in table},
            "paper_ratio_to_slowest": {str(local): table[-1].paper / local.paper for local in table},
            "target": target,
        },
    )


def in_order(found: Mapping[Local, int]) -> bool:
    """Returns whether the first of the table is the fastest and the last the slowest, and the others stand as in the paper, in
    which neighbours may take equally many rounds."""
    rounds = [found[local] for local in sorted(found, key=lambda local: local.paper)]
    return rounds == sorted(rounds) and rounds[0] < rounds[-1]


def best_of(target: float, local: Local, folder: str, rates: Sequence[float]) -> tuple[int, dict[str, int | None]]:
    """Returns the fewest rounds of these learning rates, `most` if none reaches the target, and lr -> its rounds; None for a
    learning rate that had not reached the target when another one had."""
    best, tried = local.most, dict[str, int | None]()
    for lr in rates:
        tried[f"{lr:g}"] = rounds = rounds_to(target, local, lr, best, folder)
        best = best if rounds is None else rounds
    return best, tried


def rounds_to(target: float, local: Local, lr: float, most: int, folder: str) -> int | None:
    """Returns the round after which the held-out accuracy is `target`; None if none of the first `most` is."""
    import shoal

    settings: dict[str, Any] = {
        "data": folder,
        "partition": "iid",
        "local_epochs": local.epochs,
        "batch_size": local.batch,
        "lr": lr,
        "rounds": most,
        "eval_every": 1 if local.paper < SLOW else 5,
    }
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as place:
        run = shoal.run(
            mnist(),
            settings=settings,
            actors=2,
            folder=Path(place) / "run",
            show=False,
            stop_when=lambda row: row.get("accuracy", 0.0) >= target,
        )
        return int(run.summary["version"]) if run.metrics.get("accuracy", 0.0) >= target else None

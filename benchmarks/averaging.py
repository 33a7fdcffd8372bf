"""Rounds that FedAvg takes to an accuracy, by local epochs E and batch size B (McMahan et al. 2017, table 2): `fl-f`.

The one idea: more work of a client in a round saves rounds, in the order and by about the ratios of the paper's table. The data
are the 10,000 test images of MNIST (80 of them at each of 100 clients), where the paper has 600 at each, so a full batch makes
fewer steps here and the ratios are smaller. The network is the paper's in small, because rounds are counted and not seconds.
(The paper's perceptron, 2NN, came to 94 % of so few images.)
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.benchmarks.case import Finding
from shoal.envs import datasets
from shoal.protocol.errors import UserError

if TYPE_CHECKING:
    from torch import nn

FOLDER = "SHOAL_MNIST"  # environment variable that names the folder of the IDX files
TARGET, QUICK_TARGET = 0.97, 0.85
TRIAL = 0.93  # accuracy to which the learning rates of an entry are tried, to choose one
FULL = 10_000  # as a batch size: at least all examples of a client
CLIENTS = 100
SLOW = 60  # rounds of the paper from which on every fifth round is evaluated
CASES = "E=5 B=10 fastest, E=1 B=full slowest, the others in the order of the paper"


class Local(NamedTuple):
    """A client's work in a round. paper: rounds to 99 % on the whole of MNIST, IID, CNN, at the paper's best learning rate.
    rates: learning rates that are tried; a quick run takes the first. most: rounds after which a run gives up."""

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
    Local(5, FULL, 179, (0.4, 0.2, 0.8), 1500),
    Local(1, FULL, 626, (0.4, 0.2, 0.8), 3000),
)


def small_cnn() -> nn.Module:
    """The paper's CNN in small: 5 x 5 convolutions of 8 and 16 channels, each pooled, and a dense layer; 11,274 parameters,
    float32 [B, 1, 28, 28] -> logits [B, 10]."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


def fl_f(quick: bool) -> Finding:
    """Counts rounds to 97 % of 2,000 held-out images, 100 clients, 10 in a round; quick: to 85 %, of three of the table."""
    asked, folder = f"the order of the FedAvg paper's table: {CASES}", os.environ.get(FOLDER, "data/mnist")
    table = [TABLE[0], TABLE[2], TABLE[-1]] if quick else TABLE
    target = QUICK_TARGET if quick else TARGET
    found: dict[Local, int] = {}
    rates: dict[str, float] = {}
    tried: dict[str, dict[str, int | None]] = {}
    try:
        for local in table:
            rate = local.rates[0]
            if not quick:
                rate, tried[str(local)] = best_of(TRIAL, local, folder)
            rounds = rounds_to(target, local, rate, local.most, folder)
            found[local], rates[str(local)] = rounds or local.most, rate
            print(f"fl-f {local}: {rounds} rounds with lr={rate:g}", file=sys.stderr, flush=True)
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
            "lr": rates,
            "rounds_by_lr": tried,
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


def best_of(target: float, local: Local, folder: str) -> tuple[float, dict[str, int | None]]:
    """Returns the learning rate that reaches the target in the fewest rounds (the first if none does), and lr -> its rounds;
    None for a learning rate that had not reached the target when another one had."""
    rate, best, tried = local.rates[0], local.most, dict[str, int | None]()
    for lr in local.rates:
        tried[f"{lr:g}"] = rounds = rounds_to(target, local, lr, best, folder)
        if rounds is not None and rounds < best:
            rate, best = lr, rounds
    return rate, tried


def rounds_to(target: float, local: Local, lr: float, most: int, folder: str) -> int | None:
    """Returns the round after which the held-out accuracy is `target`; None if none of the first `most` is."""
    import shoal

    settings: dict[str, Any] = {
        "partition": "iid",
        "clients": CLIENTS,
        "cohort": 10,
        "local_epochs": local.epochs,
        "batch_size": local.batch,
        "lr": lr,
        "rounds": most,
        "eval_every": 1 if local.paper < SLOW else 5,
    }
    job = shoal.Federated(small_cnn, lambda: datasets.mnist(folder), **settings)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as place:
        run = shoal.run(
            job,
            actors=2,
            folder=Path(place) / "run",
            show=False,
            stop_when=lambda row: row.get("accuracy", 0.0) >= target,
        )
        return int(run.summary["version"]) if run.metrics.get("accuracy", 0.0) >= target else None

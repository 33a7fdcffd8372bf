"""A job whose actors stand still in the middle of a round until a gate opens, and an actor that writes down what it hears.

The one idea: a worker that has done its share of the round waits for whoever opens a named pipe for writing; so who has done
what by then is counted, and does not depend on how fast anything is.

`python standing.py ADDRESS NOTES` is such an actor; NOTES is a folder (tests/faults/family.py).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.faults.family import noting
from shoal.jobs.federated import Federated
from shoal.jobs.methods.fedavg import FedAvg
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

GATE = "SHOAL_TEST_GATE"  # in the environment: the pipe's path
ROUND = 1  # made from this version, of which there is a snapshot by then
ACTORS, SHARE, CLIENTS = 2, 2, 8  # share: clients that an actor does in that round before it stands still
BACK = 4.0  # seconds that actors have to come back: twice as many as usual, on a machine that has much to do


class Stander:
    """A worker."""

    def __init__(self) -> None:
        self.done = 0

    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        if task.version == ROUND:
            if self.done == SHARE:
                os.close(os.open(os.environ[GATE], os.O_RDONLY))
            self.done = min(SHARE, self.done + 1)
        pull = np.random.default_rng([task.version, client]).normal(size=1_000)
        delta = {"w": (0.1 * (pull - weights["w"])).astype(np.float32)}
        return Work(Bundle.pack(delta, weights.layout), 1.0 + client)


@dataclass(frozen=True)
class Standing(FedAvg):
    """FedAvg whose work begins when all actors are here; none holds more than two tasks, so there is enough for each."""

    name: ClassVar[str] = "standing"

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        """Rounds that are cut into a task for each place, however quick they are: an actor has a second task to wait with."""
        made = super().plan(asked, seed, sums)
        made._shares = lambda seats: seats.room  # type: ignore[attr-defined]
        return made

    def bounds(self, sums: bool) -> Bounds:
        return replace(super().bounds(sums), most=2, gather=ACTORS, back=BACK)


job = Federated(
    worker=Stander,
    weights=lambda: {"w": np.zeros(1_000, np.float32)},
    name="standing",
    method=Standing(clients=CLIENTS, cohort=CLIENTS, rounds=3, eval_every=0),
    journal="ids",
)

if __name__ == "__main__":
    sys.exit(noting(job, Path(sys.argv[2]))({"address": sys.argv[1]}))

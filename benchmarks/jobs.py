"""Jobs without learning, which measure the machinery alone.

The one idea: these are ordinary jobs whose worker returns the same bundle for every client, so everything else is
what a user's run goes through.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Outcome, Plan, Seats
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.jobs.federated import Federated
from shoal.jobs.job import Job
from shoal.jobs.methods.fedavg import FedAvg
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Problem
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Moved, Task, Work

SMALL = 1_000  # float32: a model of 4 KB


class NoOp:
    """A worker whose clients all return the same delta with weight 1. floats: size of the delta; None: that of the weights."""

    draws = False

    def __init__(self, floats: int | None = None) -> None:
        self.floats = floats
        self.delta: Bundle | None = None

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        if self.delta is None:
            self.delta = Bundle.zeros(weights.layout if self.floats is None else vector(self.floats))
            self.delta.vector()[:] = 2.0**-10
        return Work(self.delta)


def noop(floats: int, cohort: int, rounds: int, *, sums: bool, clients: int = 1_000, **settings: Any) -> Job:
    """Returns a job of federated averaging of `floats` float32 in which clients do nothing.

    sums: an actor sends one sum over its clients; else each client's contribution travels by itself. Sums are exact, single
    contributions plain, unless `deterministic` says otherwise.
    """
    return Federated(
        worker=NoOp,
        weights=lambda: {"w": np.zeros(floats, np.float32)},
        name="noop",
        clients=clients,
        cohort=cohort,
        rounds=rounds,
        partial_sums=sums,
        **{"eval_every": 0, "journal": "off", "snapshot_every": 1e9, "deterministic": sums, **settings},
    )


@dataclass(frozen=True)
class Broadcasting(FedAvg):
    """A method whose weights never change and go to all actors in every round; its contributions are a few bytes."""

    name: ClassVar[str] = "broadcasting"

    still: Any = None
    actors: int = 1

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        return Assembled(self.actors)

    def bounds(self, sums: bool) -> Bounds:
        """Returns bounds with one task for each actor, so that no actor skips a version."""
        return Bounds(ahead=1, most=1, sticky=True)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        still: Still = self.still
        return still

    def layouts(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        return [vector(16)]


def broadcast(floats: int, actors: int, rounds: int) -> tuple[Job, Still]:
    """Returns a job of `rounds` rounds, and its aggregator."""
    still = Still(floats)
    job = Federated(
        worker=lambda: NoOp(16),
        weights=lambda: {"w": np.ones(floats, np.float32)},
        name="broadcast",
        method=Broadcasting(still=still, actors=actors, clients=actors, cohort=actors, rounds=rounds, deterministic=False),
        eval_every=0,
        journal="off",
        snapshot_every=1e9,
    )
    return job, still


class Assembled(Rounds):
    """Rounds of all clients; the first begins when as many actors as clients are here."""

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        return super().assign(seats, news, version, now) if version or self.issued or seats.room >= self.clients else ()


class Still:
    """An aggregator whose weights never change. made: monotonic seconds at which each version was made."""

    linear: ClassVar[bool] = False

    def __init__(self, floats: int) -> None:
        self.bundle = Bundle.zeros(vector(floats))
        self.bundle.vector()[:] = 1.0
        self.made: list[float] = [0.0]

    def weights(self) -> Bundle:
        return self.bundle

    def fold(self, contribution: Contribution) -> None:
        return

    def step(self) -> Moved:
        self.made.append(time.monotonic())
        return Moved()

    def state(self) -> Mapping[str, Any]:
        return {}

    def load(self, weights: Bundle, state: Mapping[str, Any]) -> None:
        return


def vector(floats: int) -> Layout:
    return Layout.of({"w": ("f4", (floats,))})

"""Clients a second that go through the machinery: small models, large models, and many registered clients.

The one idea: the clients do nothing, so the rate is the machinery's. It is computed from the run's own record, without
the run's start.
"""

from __future__ import annotations

import gc
import time
from typing import Any

from shoal.benchmarks.case import Finding
from shoal.benchmarks.floors import bare_zmq, memcpy, weighted_sum
from shoal.benchmarks.jobs import SMALL
from shoal.benchmarks.jobs import noop as job
from shoal.benchmarks.machine import resident
from shoal.benchmarks.peers import questions
from shoal.benchmarks.peers.beside import Beside
from shoal.benchmarks.play import played
from shoal.benchmarks.timing import interleaved
from shoal.coordinator.deciding.plans import AFRESH, Seats

ACTORS = 2
LARGE = 1_200_000  # float32: 4.8 MB


def noop(quick: bool) -> Finding:
    """Measures contributions of 4 KB, each client's by itself."""
    rounds = 6 if quick else 20
    beside = Beside(questions.noop(SMALL), quick)
    ours, bare, _ = interleaved(
        2 if quick else 5,
        lambda: _rate(SMALL, cohort=1_000, rounds=rounds, sums=False),
        lambda: bare_zmq(4 * SMALL, ACTORS, 10_000),
        beside.turn,
    )
    flower = beside.best("flower")
    return Finding(
        figure=ours,
        unit="clients/s",
        goal=12_000.0,
        floor=bare,
        peer=flower,
        ratio=ours / bare,
        holds=ours >= 12_000 and (flower is None or ours >= 200 * flower),
        asked="at least 12,000/s, and 200 times Flower's simulation" + (" (not measured)" if flower is None else ""),
        details={
            "floor": "bare pyzmq",
            "actors": ACTORS,
            "times_flower": None if flower is None else ours / flower,
            **beside.details(),
        },
    )


def noop_sums(quick: bool) -> Finding:
    """Measures contributions of 4 KB when an actor sends one sum over its clients."""
    rounds = 20 if quick else 100
    (ours,) = interleaved(3 if quick else 5, lambda: _rate(SMALL, cohort=10_000, rounds=rounds, sums=True, clients=10_000))
    return Finding(
        figure=ours,
        unit="clients/s",
        goal=150_000.0,
        holds=ours >= 150_000,
        asked="at least 150,000/s",
        details={"actors": ACTORS, "cohort": 10_000},
    )


def contributions_5mb(quick: bool) -> Finding:
    """Measures contributions of 4.8 MB: each by itself, and in partial sums, plain and exact."""
    cohort, rounds = 100, 4 if quick else 12
    ways = {
        "own_shm": lambda: _rate(LARGE, cohort, rounds, sums=False, transport="shm"),
        "own_ipc": lambda: _rate(LARGE, cohort, rounds, sums=False),
        "sums_shm": lambda: _rate(LARGE, cohort, rounds, sums=True, transport="shm", deterministic=False),
        "exact_sums_shm": lambda: _rate(LARGE, cohort, rounds, sums=True, transport="shm"),
        "memory": lambda: 1 / weighted_sum(LARGE, 200),
        "copy": lambda: 1 / memcpy(4 * LARGE),
    }
    beside = Beside(questions.large(LARGE), quick)
    *medians, _ = interleaved(2 if quick else 5, *ways.values(), beside.turn)
    found = dict(zip(ways, medians, strict=True))
    own, sums, floor = found["own_shm"], found["sums_shm"], found["memory"]
    return Finding(
        figure=own,
        unit="clients/s, each with its own 4.8 MB",
        goal=1_000.0,
        floor=floor,
        peer=beside.best("flower"),
        ratio=own / floor,
        holds=own >= 1_000 and sums >= 5_000 and own >= floor / 2,
        asked="at least 1,000/s each on its own, 5,000/s in plain partial sums; half of what one thread's weighted sums reach",
        details={**found, "actors": ACTORS, **beside.details()},
    )


def registry(quick: bool) -> Finding:
    """Measures the rate with 1,000 and with 1,000,000 registered clients, and the cost of registering 1,000,000."""
    rounds = 100 if quick else 400
    few, many = interleaved(
        2 if quick else 5,
        lambda: _rate(SMALL, 500, rounds, sums=True, clients=1_000),
        lambda: _rate(SMALL, 500, rounds, sums=True, clients=1_000_000),
    )
    seconds, nbytes = _registered(1_000_000)
    change = 1 - many / few
    return Finding(
        figure=100 * change,
        unit="% of the rate lost from 1,000 to 1,000,000 clients",
        goal=10.0,
        holds=change <= 0.10 and seconds < 2 and nbytes < 500e6,
        asked="at most 10 %; less than 2 s and 500 MB to register a million",
        details={"rate_1000": few, "rate_1000000": many, "register_s": seconds, "register_bytes": nbytes},
    )


def _registered(clients: int) -> tuple[float, int]:
    """Returns seconds and bytes from a job's settings to the first tasks of its first round."""
    gc.collect()
    before, began = resident(), time.perf_counter()
    plan = job(SMALL, 2_000, 1, sums=True, clients=clients).plan(AFRESH)
    tasks = plan.assign(Seats(4), (), 0, 0.0)
    seconds = time.perf_counter() - began
    assert tasks
    return seconds, max(0, resident() - before)


def _rate(floats: int, cohort: int, rounds: int, *, transport: str = "ipc", **settings: Any) -> float:
    with played(job(floats, cohort, rounds, **settings), actors=ACTORS, transport=transport) as run:
        return run.pace(skip=2)

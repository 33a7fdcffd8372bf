"""Memory of the coordinator: its peak with a large model, and its growth over thousands of rounds.

The one idea: a linear aggregator needs the weights and one total for any cohort; the kernel's own counters measure it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from shoal.aggregators.fedavg import FedAvgServer
from shoal.benchmarks.case import Finding
from shoal.benchmarks.jobs import SMALL, NoOp, noop, vector
from shoal.benchmarks.machine import resident
from shoal.benchmarks.play import played
from shoal.jobs.methods.method import Method
from shoal.jobs.problems import Calls, Evaluate
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task

MB = 1_000_000
MODELS = 2.5
FLAT = 64 * 1024  # bytes in a thousand rounds: a smaller growth cannot be told from none


def memory(quick: bool) -> Finding:
    """Measures peak memory in models, beyond the process's memory before; and growth over rounds of a small model."""
    nbytes, rounds = (100 * MB, 3_000) if quick else (400 * MB, 10_000)
    growth = grown(rounds)
    for transport in ("tcp", "shm"):
        peak(MB, 4, transport)  # late imports happen now, so that no measured peak has them
    alone = {f"aggregator_{form}": alone_peak(nbytes, exact) for form, exact in (("plain", False), ("exact", True))}
    found = {f"cohort_{cohort}_{kind}": peak(nbytes, cohort, kind) for cohort, kind in ((4, "tcp"), (16, "tcp"), (16, "shm"))}
    worst = max(found["cohort_4_tcp"], found["cohort_16_tcp"])  # shm also counts the actors' own rings
    return Finding(
        figure=worst,
        unit=f"models of {nbytes // MB} MB, the coordinator's peak with plain sums",
        goal=MODELS,
        holds=worst <= MODELS and growth <= FLAT,
        asked=f"at most {MODELS} models for any cohort, and no growth over {rounds:,} rounds",
        details={**alone, **found, "bytes_a_thousand_rounds": growth},
    )


def alone_peak(nbytes: int, exact: bool) -> float:
    """Returns the peak, in models beyond one contribution, of an aggregator whose newest weights are held: 3 rounds of 4."""
    delta = NoOp().run(Bundle.zeros(vector(nbytes // 4)), 0, Task(0, 0, (0,)))
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    aggregator = FedAvgServer(Bundle.zeros(vector(nbytes // 4)), deterministic=exact)
    newest = aggregator.weights()
    for version in range(3):
        for client in range(4):
            aggregator.fold(Contribution(Task(version, client, (client,)), version, 0, delta))
        aggregator.step()
        newest = aggregator.weights()
    found = (resident(peak=True) - before) / nbytes
    assert newest.vector()[0] > 0
    return found


def peak(nbytes: int, cohort: int, transport: str) -> float:
    """Returns the peak, in models beyond the process's memory before, of a run with a linear aggregator and plain sums."""
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    with played(noop(nbytes // 4, cohort, 4, sums=False), actors=2, transport=transport):
        return (resident(peak=True) - before) / nbytes


class Watched(Calls):
    """A problem whose central evaluation returns the coordinator's resident memory in bytes."""

    def central(self, method: Method, seed: int, device: str) -> Evaluate:
        return lambda weights: {"resident": float(resident())}


def grown(rounds: int) -> float:
    """Returns bytes of growth in a thousand rounds: the slope of a straight line through the second half of a run."""
    plain = noop(SMALL, 4, rounds, sums=True, eval_every=100)
    assert isinstance(plain.problem, Calls)
    job = replace(plain, problem=Watched(plain.problem.worker, plain.problem.weights))
    with played(job, actors=2) as run:
        noted = [(row["version"], row["metrics"]["resident"]) for row in run.rows if "resident" in row["metrics"]]
    versions, sizes = np.array(noted[len(noted) // 2 :], dtype=np.float64).T
    return 1_000 * float(np.polyfit(versions, sizes, 1)[0])

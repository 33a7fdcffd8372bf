"""Rounds of small dense models, and the memory of a large one, beside pfl-research and Flower: fl-a, fl-d and fl-h.

The one idea: all train the same model on the same clients' data, each in processes of its own and by its best settings of those
tried, by turns in one run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shoal.benchmarks.case import Finding
from shoal.benchmarks.peers import questions
from shoal.benchmarks.peers.beside import Beside
from shoal.benchmarks.play import simulated
from shoal.benchmarks.timing import interleaved
from shoal.jobs.catalog import digits
from shoal.jobs.problems import Supervised

SKIP = 30  # rounds left out at the start: processes start, steps are traced, and the first rounds are cut by guess
WAYS = {
    "batched_1_actor": ("engine=batched", 1),
    "batched_2_actors": ("engine=batched", 2),
    "batched_no_actors": ("engine=batched", 0),
    "loop_2_actors": ("engine=loop", 2),
}
SMALL = """
import numpy as np
from shoal import Federated
from shoal.envs.population import Population
from shoal.envs.datasets import Examples
from shoal.nets.models import mlp

sizes, clients, examples = {sizes}, {clients}, {examples}


def mine(client):
    rng = np.random.default_rng(client)
    return Examples(rng.normal(size=(examples, sizes[0])).astype(np.float32), rng.integers(0, sizes[-1], examples))


job = Federated(lambda: mlp(sizes), Population(clients, mine), clients=clients, cohort={cohort}, batch_size=10, {more})
"""


def fl_a(quick: bool) -> Finding:
    """Measures rounds a second of the digits: 100 clients, cohort 10, E=1, B=10."""
    rounds = 150 if quick else 400
    accuracy: dict[str, float] = {}

    def ours(name: str) -> Callable[[], float]:
        engine, actors = WAYS[name]

        def way() -> float:
            words = ("local_epochs=1", f"rounds={rounds}", "eval_every=0", engine, "--actors", str(actors))
            with simulated("digits", *words) as run:
                accuracy[name] = run.summary["metrics"]["accuracy"]
                return 1 / statistics.median(run.rounds(SKIP))

        return way

    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        path = digits_in(Path(folder))
        beside = Beside(questions.trained(path, 10, rounds), quick)
        *found, _ = interleaved(1 if quick else 3, *(ours(name) for name in WAYS), beside.turn)
    by_name = dict(zip(WAYS, found, strict=True))
    best = max(by_name, key=lambda name: by_name[name])
    pfl, flower = beside.best("pfl"), beside.best("flowertorch")
    near = abs(accuracy[best] - accuracy["loop_2_actors"]) < 0.01
    return Finding(
        figure=by_name[best],
        unit="rounds/s",
        goal=None if pfl is None else 3 * pfl,
        peer=pfl,
        ratio=None if pfl is None else by_name[best] / pfl,
        holds=None if pfl is None or flower is None else by_name[best] >= max(3 * pfl, 50 * flower) and near,
        asked="at least 3 times pfl's and 50 times Flower's, and the loop's held-out accuracy to a hundredth",
        details={
            **by_name,
            "best": best,
            "accuracy": accuracy,
            "times_flower": flower and by_name[best] / flower,
            **beside.details(),
        },
    )


def fl_d(quick: bool) -> Finding:
    """Measures clients a second of a small model: 32-32-10, 50 clients in each round, 5 steps of 10 examples each."""
    rounds, cohort = (100 if quick else 300), 50
    text = SMALL.format(sizes=(32, 32, 10), clients=50, examples=50, cohort=cohort, more="local_epochs=1, eval_every=0")

    def ours(name: str, file: Path) -> Callable[[], float]:
        engine, actors = WAYS[name]

        def way() -> float:
            with simulated(f"{file}:job", f"rounds={rounds}", engine, "--actors", str(actors)) as run:
                return cohort / statistics.median(run.rounds(SKIP))

        return way

    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        file, path = Path(folder) / "small.py", made_in(Path(folder), (32, 32, 10), 50, 50)
        file.write_text(text)
        asked = {name: one for name, one in questions.trained(path, cohort, rounds).items() if one.peer == "pfl"}
        beside = Beside(asked, quick)
        *found, _ = interleaved(1 if quick else 3, *(ours(name, file) for name in WAYS), beside.turn)
    by_name = dict(zip(WAYS, found, strict=True))
    best = max(by_name, key=lambda name: by_name[name])
    pfl = None if (peer := beside.best("pfl")) is None else cohort * peer
    return Finding(
        figure=by_name[best],
        unit="clients/s",
        goal=None if pfl is None else 10 * pfl,
        peer=pfl,
        ratio=None if pfl is None else by_name[best] / pfl,
        holds=None if pfl is None else by_name[best] >= 10 * pfl,
        asked="at least 10 times pfl's",
        details={**by_name, "best": best, "pfl_in": "rounds/s", **beside.details()},
    )


def fl_h(quick: bool) -> Finding:
    """Measures the memory of all processes: 1,000 clients of a 45 MB model, cohort 100, 2 actors, one step a client."""
    sizes, cohort, rounds = (784, 3_300, 2_600, 10), (20 if quick else 100), (2 if quick else 3)
    more = f"local_steps=1, eval_every=0, rounds={rounds}"
    text = SMALL.format(sizes=sizes, clients=1_000, examples=10, cohort=cohort, more=more)
    peaks: dict[str, float] = {}

    def measured(name: str, work: Callable[[], object]) -> Callable[[], float]:
        def way() -> float:
            with peak_of_children() as peak:
                work()
            peaks[name] = max(peaks.get(name, 0.0), peak.bytes)
            return peak.bytes

        return way

    def ours(file: Path) -> None:
        with simulated(f"{file}:job", "--actors", "2"):
            return

    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        file, path = Path(folder) / "large.py", made_in(Path(folder), sizes, 1_000, 10)
        file.write_text(text)
        asked = {name: one for name, one in questions.trained(path, cohort, rounds).items() if name == "pfl_2_processes"}
        beside = Beside(asked, quick)
        interleaved(1 if quick else 2, measured("shoal", lambda: ours(file)), measured("pfl", beside.turn))
    figure, pfl = peaks["shoal"] / 1e9, (peaks["pfl"] / 1e9 if beside.best("pfl") else None)
    return Finding(
        figure=figure,
        unit="GB at the peak, all processes together",
        goal=3.0,
        peer=pfl,
        ratio=None if pfl is None else figure / pfl,
        holds=None if pfl is None else figure <= min(3.0, 1.1 * pfl),
        asked="at most 3 GB, and 1.1 times pfl's with two processes",
        details={"pages_that_are_shared": "count once", "cohort": cohort, **beside.details()},
    )


# The clients' data, for peers


def digits_in(folder: Path) -> Path:
    """Writes the digits' clients, as Shoal divides them, and returns the file."""
    job = digits().configured({"local_epochs": 1})
    assert isinstance(job.problem, Supervised)
    population = job.problem.population(job.method, job.seed)
    each = [population.examples(client) for client in range(100)]
    return written(folder, (64, 64, 10), [(one.x, one.y) for one in each])


def made_in(folder: Path, sizes: tuple[int, ...], clients: int, examples: int) -> Path:
    """Writes the clients of SMALL, and returns the file."""
    found = []
    for client in range(clients):
        rng = np.random.default_rng(client)
        x = rng.normal(size=(examples, sizes[0])).astype(np.float32)
        found.append((x, rng.integers(0, sizes[-1], examples)))
    return written(folder, sizes, found)


def written(folder: Path, sizes: tuple[int, ...], each: list[tuple[Any, Any]]) -> Path:
    path = folder / "clients.npz"
    lengths = np.array([len(y) for _, y in each])
    xs, ys = np.concatenate([x for x, _ in each]), np.concatenate([y for _, y in each])
    np.savez(path, allow_pickle=False, sizes=np.array(sizes), lengths=lengths, x=xs.astype(np.float32), y=ys.astype(np.int64))
    return path


# Memory


@dataclass
class Peak:
    bytes: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self.over.wait(0.1):
            self.bytes = max(self.bytes, sum(map(held, children())))


@contextmanager
def peak_of_children() -> Iterator[Peak]:
    """Yields the largest memory, looked at every 0.1 s, of all processes that descend from this one. A page that several of
    them share counts once (Pss)."""
    peak = Peak()
    watcher = threading.Thread(target=peak.watch)
    watcher.start()
    try:
        yield peak
    finally:
        peak.over.set()
        watcher.join()


def children() -> set[int]:
    """Returns the process ids of all descendants of this process."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found, size = {os.getpid()}, 0
    while len(found) > size:
        size = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found - {os.getpid()}


def held(pid: int) -> float:
    """Returns the bytes of a process, of a page that n processes share an nth; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((1024.0 * int(one.split()[1]) for one in lines if one.startswith("Pss:")), 0.0)

"""A client's memory goes down with its task and comes up with its work, so that any actor may play any client."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from test_pieces import Road
from typed import ran
from whole import Outcome, run

from shoal import FedAvg, Federated, Moved
from shoal.jobs.job import Job
from shoal.protocol.fetching import LEAST
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Task, Work

CLIENTS = 10
SMALL, LARGE = 50, 3 * LEAST // 4 + 5  # floats: a brief that goes with its task, and one that is fetched in pieces


class Remembering:
    """The mean of deltas becomes the step; what a client sent last is its memory."""

    linear = False

    def __init__(self, weights: Bundle) -> None:
        self.now = weights.copy()
        self.memory = np.zeros((CLIENTS, weights.vector().size), np.float32)
        self.deltas: list[tuple[tuple[int, ...], npt.NDArray[Any]]] = []

    def weights(self) -> Bundle:
        return self.now

    def brief(self, task: Task) -> Bundle | None:
        [client] = task.clients
        return Bundle.pack({"memory": self.memory[client]}) if self.memory[client].any() else None

    def fold(self, contribution: Contribution) -> None:
        assert contribution.work.bundle is not None
        self.deltas.append((contribution.task.clients, contribution.work.bundle.vector().copy()))

    def step(self) -> Moved:
        self.deltas.sort(key=lambda pair: pair[0])
        moved = self.now.copy()
        moved.vector()[:] += np.mean([delta for _, delta in self.deltas], axis=0)
        for (client,), delta in self.deltas:
            self.memory[client] = delta
        self.now, self.deltas = moved, []
        return Moved({"remembered": float(np.abs(self.memory).sum())})

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"memory": self.memory}

    def load(self, weights: Bundle, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.now, self.memory, self.deltas = weights.copy(), state["memory"].copy(), []


class Drifting:
    """A worker whose delta goes on with half of the last one."""

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        pull = np.random.default_rng([task.version, client]).normal(size=weights.vector().size).astype(np.float32)
        delta = 0.1 * (pull - weights["w"])
        if brief is not None:
            delta += 0.5 * brief["memory"]
        totals = {"briefed": (float(brief is not None), 1.0)}
        return Work(Bundle.pack({"w": delta.astype(np.float32)}, weights.layout), 1.0, totals)


@dataclass(frozen=True)
class Remember(FedAvg):
    name: ClassVar[str] = "remember"

    def aggregator(self, start: Any, device: str) -> Any:
        return Remembering(start.weights)

    def briefs(self, problem: Any, weights: Layout) -> Sequence[Layout]:
        return [Layout.of({"memory": ("f4", (weights.places[0].shape[0],))})]


def remembering(floats: int, **settings: Any) -> Job:
    own = {"clients": CLIENTS, "cohort": 6, "rounds": 6, "eval_every": 0, **settings}
    return Federated(worker=Drifting, weights=lambda: {"w": np.zeros(floats, np.float32)}, method=Remember, **own)


def briefed(outcome: Outcome) -> list[float]:
    """How many of a round's tasks had a brief."""
    return [metrics["briefed"] for _, metrics in outcome.seen.steps]


@pytest.mark.parametrize("floats", [SMALL, LARGE])
@pytest.mark.parametrize("transport", ["ipc", "tcp", "shm", "gateway"])
def test_briefs_reach_whoever_plays_the_client_and_change_no_bit(tmp_path: Path, floats: int, transport: str) -> None:
    alone = run(remembering(floats), 0)
    address = "tcp://127.0.0.1:*" if transport in ("tcp", "gateway") else f"ipc://{tmp_path}/hub"
    outcome = run(remembering(floats), 3, address, share=transport == "shm", gateway=transport == "gateway")
    assert outcome.finish.reason == "done"
    assert outcome.sha256 == alone.sha256
    assert briefed(outcome) == briefed(alone)
    assert briefed(alone)[0] == 0.0
    assert briefed(alone)[-1] > 0.5


@pytest.mark.parametrize("seed", range(2))
def test_connections_that_are_cut_while_briefs_are_on_their_way_change_no_bit(seed: int) -> None:
    with contextlib.closing(Road(12, seed)) as road:
        outcome = run(remembering(LARGE), 2, through=road.to)
    assert outcome.finish.reason == "done"
    assert road.made > 12
    assert outcome.sha256 == run(remembering(LARGE), 0).sha256


def test_memories_are_kept_over_a_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    Path("mine.py").write_text(f"from test_memories import remembering\njob = remembering({SMALL})\n")
    whole = ran("simulate", "mine.py", "--actors", 2, "--json").result["weights_sha256"]
    ran("simulate", "mine.py", "rounds=3", "--actors", 0, "--run-dir", "run")
    assert ran("resume", "run", "rounds=6", "--json").result["weights_sha256"] == whole


def test_where_no_task_has_a_brief_nothing_is_asked_of_the_aggregator(tmp_path: Path) -> None:
    outcome = run(Federated(worker=Drifting, weights=lambda: {"w": np.zeros(9, np.float32)}, clients=3, cohort=3, rounds=2), 2)
    assert outcome.finish.reason == "done"
    assert set(briefed(outcome)) == {0.0}

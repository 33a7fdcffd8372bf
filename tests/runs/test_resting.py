"""A version whose weights are those of before is told by its number, and costs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from whole import run

from shoal import FedAvg, Federated, Moved
from shoal.aggregators.around import Around
from shoal.jobs.job import Job
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

SMALL, LARGE = 50, 200_000  # floats: weights that go with their message, and weights that are fetched or lie in shared memory


class Resting(Around):
    """Two of three steps leave the weights as they are: what was folded in waits."""

    turns = 0

    def step(self) -> Moved:
        self.turns += 1
        return self.aggregator.step() if self.turns % 3 == 0 else Moved({"rested": 1.0}, weights=False)


@dataclass(frozen=True)
class Rest(FedAvg):
    name: ClassVar[str] = "rest"

    def aggregator(self, start: Any, device: str) -> Any:
        return Resting(super().aggregator(start, device))


class Drifting:
    """A worker."""

    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        pull = np.random.default_rng([task.version, client]).normal(size=weights.vector().size)
        return Work(Bundle.pack({"w": (0.1 * (pull - weights["w"])).astype(np.float32)}, weights.layout), 1.0 + client)


def resting(floats: int) -> Job:
    first = lambda: {"w": np.zeros(floats, np.float32)}  # noqa: E731
    return Federated(worker=Drifting, weights=first, method=Rest, clients=8, cohort=4, rounds=9, eval_every=0)


@pytest.mark.parametrize("floats", [SMALL, LARGE])
@pytest.mark.parametrize("transport", ["ipc", "tcp", "shm"])
def test_weights_that_rest_are_told_and_not_sent_and_change_no_bit(tmp_path: Path, floats: int, transport: str) -> None:
    alone = run(resting(floats), 0)
    address = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{tmp_path}/hub"
    outcome = run(resting(floats), 3, address, share=transport == "shm")
    assert outcome.finish.reason == "done"
    assert outcome.sha256 == alone.sha256
    assert [version for version, metrics in outcome.seen.steps if "rested" in metrics] == [1, 2, 4, 5, 7, 8]
    if transport != "shm":  # three actors got versions 0, 3 and 6, and no others; those of 9 are not waited for
        sent = sum(metrics["down_bytes"] for _, metrics in outcome.seen.steps)
        assert sent <= 3 * 3 * 4 * floats + 3 * 4 * floats

"""A method that collects trajectories and learns nothing: the bound that actors and transport set to reinforcement learning.

The one idea: it is IMPALA but for its learner, so tasks, trajectories and their way are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shoal.aggregators import Aggregator
from shoal.jobs.methods.impala import IMPALA
from shoal.jobs.methods.method import Start
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved

JOB = """
from shoal import Reinforcement
from shoal.benchmarks.collecting import Collecting

job = Reinforcement({env!r}, method=Collecting())
"""


@dataclass(frozen=True)
class Collecting(IMPALA):
    """IMPALA's schedule with a learner that keeps the weights of version 0."""

    name: ClassVar[str] = "collecting"

    def aggregator(self, start: Start, device: str) -> Aggregator:
        return Collector(start.weights)


class Collector:
    """An aggregator that copies each trajectory into memory of its own, as learners do, and whose weights never change."""

    linear: ClassVar[bool] = False

    def __init__(self, weights: Bundle) -> None:
        self.bundle = weights
        self.held = np.empty(0, np.uint8)

    def weights(self) -> Bundle:
        return self.bundle

    def fold(self, contribution: Contribution) -> None:
        data = contribution.bundle.data
        if self.held.size != data.size:
            self.held = np.empty_like(data)
        np.copyto(self.held, data)

    def step(self) -> Moved:
        return Moved(weights=False)

    def state(self) -> Mapping[str, Any]:
        return {}

    def load(self, weights: Bundle, state: Mapping[str, Any]) -> None:
        self.bundle = weights


def collecting(folder: Path, env: str) -> str:
    """Writes a job that collects in `env`, and returns its name for `shoal simulate`."""
    file = folder / "collecting_job.py"
    file.write_text(JOB.format(env=env))
    return f"{file}:job"

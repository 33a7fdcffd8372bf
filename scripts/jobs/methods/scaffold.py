"""SCAFFOLD: control variates at server and clients take the clients' drift out of their steps (Karimireddy et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.stateful import Stateful, alike
from shoal.jobs.problems import Problem

if TYPE_CHECKING:
    from shoal.actors.workers.local_sgd import LocalSGD

PLAIN = "SCAFFOLD's control variates are means of the gradients of plain SGD (algorithm 1)"


@dataclass(frozen=True)
class Scaffold(Stateful):
    """SCAFFOLD with option II (Karimireddy et al. 2020, algorithm 1)."""

    name: ClassVar[str] = "scaffold"

    weighting: str = alike()

    def trainer(self) -> type[LocalSGD]:
        from shoal.actors.workers.scaffold import ScaffoldSGD

        return ScaffoldSGD

    def beside(self, problem: Problem) -> Mapping[str, int]:
        return {"control": self.trainable(problem)}

    def down(self, problem: Problem) -> Mapping[str, int]:
        return {"correction": self.trainable(problem)}

    def check(self, problem: Problem) -> None:
        super().check(problem)
        self.plain_steps(PLAIN)

    def try_out(self, seed: int) -> None:
        super().try_out(seed)
        self.never_still(seed, "SCAFFOLD divides by the learning rate: give factors above 0")

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.scaffold import ScaffoldServer

        trainable = self.trainable(start.problem) if start.trainable is None else start.trainable
        return ScaffoldServer(start.weights, trainable, **self.options(device))

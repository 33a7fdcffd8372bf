"""MimeLite: local steps of a centralised optimizer with the server's statistics (Karimireddy et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.fedavg import InRounds
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.stateful import Apiece, unused
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option

if TYPE_CHECKING:
    from shoal.actors.workers.local_sgd import LocalSGD
    from shoal.nets.mime import MimeMomentum

NAMES: Mapping[str, tuple[str, ...]] = {"momentum": ("m",), "rmsprop": ("v",), "adam": ("m", "v")}
"""The statistics of nets/mime.py, which needs torch."""


@dataclass(frozen=True)
class MimeLite(Apiece):
    """MimeLite (Karimireddy et al. 2021, algorithm 1). The clients have no state; the server's statistics go down with each
    task, and a client's full-batch gradient comes up beside its delta, so both ways take about twice the bytes of fedavg."""

    name: ClassVar[str] = "mimelite"

    weight_decay: float = unused("weight_decay", InRounds)
    base_optimizer: str = option(
        "momentum", "centralised optimizer whose statistics stay fixed through the local steps", choices=tuple(NAMES)
    )
    beta1: float = option(0.9, "decay of the base optimizer's mean gradient, for each round", least=0, below=1)
    beta2: float = option(
        0.99, "decay of the base optimizer's mean square", least=0, below=1, of={"base_optimizer": ("rmsprop", "adam")}
    )
    eps: float = option(
        1e-3, "number added to the root of the mean square", above=0, of={"base_optimizer": ("rmsprop", "adam")}
    )

    def trainer(self) -> type[LocalSGD]:
        from shoal.actors.workers.mimelite import MimeLiteSGD

        return MimeLiteSGD

    def beside(self, problem: Problem) -> Mapping[str, int]:
        return {"gradient": self.trainable(problem)}

    def down(self, problem: Problem) -> Mapping[str, int]:
        return dict.fromkeys(NAMES[self.base_optimizer], self.trainable(problem))

    def check(self, problem: Problem) -> None:
        super().check(problem)
        self.plain_steps("MimeLite's clients step by base_optimizer alone")

    def statistics(self) -> MimeMomentum:
        from shoal.nets.mime import BASES

        return BASES[self.base_optimizer](self.beta1, self.beta2, self.eps)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.mimelite import MimeLiteServer

        trainable = self.trainable(start.problem) if start.trainable is None else start.trainable
        return MimeLiteServer(start.weights, trainable, base=self.statistics(), **self.options(device))

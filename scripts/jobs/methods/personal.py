"""Personalisation: FedPer, FedRep and FedBN keep layers with the clients, Ditto a model; `finetune` trains before it judges.

The one idea: what is personal lies at the coordinator under the client's number, and clients are judged by their own examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.aggregators import Aggregator
from shoal.jobs.methods.fedavg import FedAvg
from shoal.jobs.methods.method import Start
from shoal.jobs.methods.stateful import Stateful, own_clients
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option

if TYPE_CHECKING:
    from shoal.actors.workers.local_sgd import LocalSGD

JUDGED = "clients that are evaluated with what is theirs, on examples of their own, every eval_every rounds (0: none)"
OWN_HELD_OUT = "share of each client's examples that only its own evaluations use"


@dataclass(frozen=True)
class Personalised(Stateful):
    """A method whose clients have something of their own, and are judged by examples of their own."""

    problems: ClassVar[tuple[str, ...]] = ("supervised",)  # a client's evaluation is on a part of its data

    eval_cohort: int = option(100, JUDGED, least=0)
    own_held_out: float = option(0.2, OWN_HELD_OUT, above=0, below=1)


@dataclass(frozen=True)
class Layers(Personalised):
    """A method whose personal part is some layers of the model."""

    whole: ClassVar[bool] = False  # held-out accuracy would be that of version 0's personal layers

    @property
    def more(self) -> bool:
        return True

    def private(self, problem: Problem) -> tuple[str, ...]:
        """The names of the personal layers."""
        raise NotImplementedError

    def places(self, problem: Problem) -> Any:
        """The places of personal entries, int64 [k], in the vector of float32 entries. Raises UserError."""
        from shoal.nets.personal import places

        return places(problem.first(0)[0].layout, self.private(problem))

    def down(self, problem: Problem) -> Mapping[str, int]:
        return {"personal": len(self.places(problem))}

    def given(self, problem: Problem) -> Mapping[str, Any]:
        return {"personal": self.private(problem)}

    def trainer(self) -> type[LocalSGD]:
        from shoal.actors.workers.personal import PersonalSGD

        return PersonalSGD

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.personal import PersonalServer

        return PersonalServer(start.weights, start.trainable, places=self.places(start.problem), **self.options(device))


@dataclass(frozen=True)
class FedPer(Layers):
    """Personal layers, trained along with the shared ones (Arivazhagan et al. 2019)."""

    name: ClassVar[str] = "fedper"

    personal: str = option("", "names of the layers that stay with the clients, or their beginnings: head, or 2,4")

    def private(self, problem: Problem) -> tuple[str, ...]:
        return tuple(name.strip().rstrip(".") for name in self.personal.split(",") if name.strip())


@dataclass(frozen=True)
class FedRep(FedPer):
    """A personal head on a shared representation, trained one after the other (Collins et al. 2021)."""

    name: ClassVar[str] = "fedrep"

    head_epochs: int = option(5, "passes over a client's data that train its personal layers alone, before the shared", least=1)

    def trainer(self) -> type[LocalSGD]:
        from shoal.actors.workers.personal import RepresentedSGD

        return RepresentedSGD


@dataclass(frozen=True)
class FedBN(Layers):
    """Batch norm stays with the clients, scale and shift as well as statistics (Li et al. 2021)."""

    name: ClassVar[str] = "fedbn"

    def private(self, problem: Problem) -> tuple[str, ...]:
        from shoal.nets.personal import norms

        return norms(problem.module(0))


@dataclass(frozen=True)
class Ditto(Personalised):
    """A model of each client's own, drawn to the global weights, which are FedAvg's (Li et al. 2021)."""

    name: ClassVar[str] = "ditto"

    lam: float = option(
        0.1, "weight of the term that draws a client's own model to the global weights: the paper's lambda", least=0
    )

    def entries(self, problem: Problem) -> int:
        first, last = problem.first(0)[0].layout.moving.segments["f4"]
        return (last - first) // 4

    def beside(self, problem: Problem) -> Mapping[str, int]:
        return {"personal": self.entries(problem)}

    down = beside

    def trainer(self) -> type[LocalSGD]:
        from shoal.actors.workers.personal import DittoSGD

        return DittoSGD

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.ditto import DittoServer

        return DittoServer(start.weights, start.trainable, entries=self.entries(start.problem), **self.options(device))


@dataclass(frozen=True)
class FineTune(FedAvg):
    """FedAvg whose clients train on their own examples before they are evaluated. With finetune_epochs=0 it is FedAvg, judged
    by the same examples."""

    name: ClassVar[str] = "finetune"
    problems: ClassVar[tuple[str, ...]] = ("supervised",)

    eval_cohort: int = option(100, JUDGED, least=0)
    own_held_out: float = option(0.2, OWN_HELD_OUT, above=0, below=1)
    finetune_epochs: int = option(1, "passes over a client's own examples before it is evaluated (0: none)", least=0)

    def trainer(self) -> type[LocalSGD]:
        from shoal.actors.workers.personal import FineTunedSGD

        return FineTunedSGD

    def check(self, problem: Problem) -> None:
        super().check(problem)
        own_clients(problem, "method=finetune")

"""FedAvg: synchronous rounds, and the weighted mean of the deltas of a round's clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.selection import (
    Oort,
    Select,
    checked,
    minimize_reuse,
    power_of_choice,
    weighted,
)
from shoal.jobs.methods.local import OPTIMIZERS, LocalTraining, check_made
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option, ranges, shown
from shoal.protocol.errors import UserError, takes

if TYPE_CHECKING:
    from shoal.nets.updates import Update

SELECTIONS = ("uniform", "weighted", "minimize_reuse", "power_of_choice", "oort")


@dataclass(frozen=True)
class InRounds(LocalTraining):
    """Federated methods in synchronous rounds: a cohort works on one version, and its contributions make the next version."""

    cohort: int = option(10, "number of clients that train in one round", least=1)
    select: str = option("uniform", "how a round's clients are chosen", choices=SELECTIONS, own=True)
    candidates: int = option(
        0,
        "number of clients from which a round takes those with the largest loss (0: twice the cohort)",
        least=0,
        of={"select": ("power_of_choice",)},
    )
    over_selection: float = option(
        1.0,
        "clients that a round asks, as a multiple of the cohort; the round ends when the cohort is in, and what comes later is "
        "left out",
        least=1,
    )
    quorum: int = option(0, "clients that suffice for a round after its deadline (0: the whole cohort)", least=0)
    deadline: float = option(0.0, "seconds from a round's start after which the quorum suffices (0: no deadline)", least=0)
    eval_cohort: int = option(
        0, "clients that evaluate the weights on their own data, every eval_every rounds (0: none)", least=0
    )

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if callable(self.select):
            among = ((),) if self.traces or self.task_memory else ()
            form = "(version, how_many, news, among)" if among else "(version, how_many, news)"
            takes("select", self.select, f"a function {form} -> clients", 0, self.cohort, (), *among)
        if self.cohort > self.clients:
            raise UserError(f"cohort={self.cohort}: allowed is from 1 to clients={self.clients}")
        if (asked := self.cohort + self.spares) > self.clients:
            most = math.floor(100 * self.clients / self.cohort) / 100
            asks = f"a round would ask {asked} clients, and there are clients={self.clients}"
            raise UserError(f"over_selection={self.over_selection:g}: {asks}; allowed is from 1 to {most:g}")
        if self.candidates and not self.cohort <= self.candidates <= self.clients:
            allowed = f"0, or from cohort={self.cohort} to clients={self.clients}"
            raise UserError(f"candidates={self.candidates}: allowed is {allowed}")
        if self.quorum > self.cohort:
            raise UserError(f"quorum={self.quorum}: allowed is from 0 to cohort={self.cohort}")
        if self.quorum and not self.deadline:
            raise UserError(f"quorum={self.quorum}: without a deadline a quorum has no effect; deadline=60, say")
        if self.deadline and not self.quorum:
            raise UserError(
                f"deadline={self.deadline:g}: without a quorum a deadline has no effect; quorum={self.cohort // 2 or 1}, say"
            )
        if self.eval_cohort != ranges(self)["eval_cohort"].default and not self.eval_every:
            raise UserError(f"eval_cohort={self.eval_cohort}: with eval_every=0 no client evaluates; eval_every=10, say")

    @property
    def spares(self) -> int:
        """The number of clients that a round asks beyond its cohort."""
        return math.ceil(self.over_selection * self.cohort - 1e-9) - self.cohort

    @property
    def asks(self) -> int:
        return self.cohort

    @property
    def at_once(self) -> int:
        return self.concurrency or self.cohort + self.spares + self.eval_cohort

    @property
    def sized(self) -> bool:
        return self.select == "weighted"

    @property
    def squares(self) -> bool:
        return self.select == "oort" or isinstance(self.select, Oort)

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        attendance = self.attendance(asked)
        each = self.spares > 0 or self.squares  # a task for each client: of a sum nobody knows whose it is
        return Rounds(
            self.clients,
            self.cohort,
            quorum=self.quorum,
            deadline=self.deadline,
            seed=seed,
            summed=sums and not each,
            evaluate_every=self.eval_every if self.eval_cohort else 0,
            evaluate_cohort=self.eval_cohort,
            asked=asked,
            select=self.selection(seed, asked.sizes),
            spare=self.spares,
            attendance=attendance if attendance is not None and attendance.limits else None,
        )

    def try_out(self, seed: int) -> None:
        if callable(self.select):
            among = (range(self.clients),) if self.traces or self.task_memory else ()
            checked(self.select, self.clients)(0, self.cohort, (), *among)

    def selection(self, seed: int, sizes: Sequence[int] = ()) -> Select | None:
        """The function (version, how many, news) -> clients that chooses a round's clients; None means uniform. sizes: each
        client's number of examples."""
        if callable(self.select):
            return self.select
        match self.select:
            case "uniform":
                return None
            case "weighted":
                if len(sizes) < self.clients:
                    raise UserError(
                        "select=weighted: this data does not tell its clients' numbers of examples; select=uniform, say"
                    )
                return weighted(sizes[: self.clients], seed)
            case "minimize_reuse":
                return minimize_reuse(self.clients, seed)
            case "oort":
                return Oort(self.clients, seed)
        return power_of_choice(self.clients, seed, self.candidates or min(self.clients, 2 * self.cohort))

    def bounds(self, sums: bool) -> Bounds:
        return Bounds(most=2 if sums else 32)

    def update(self) -> Update:
        """The server's optimizer, which takes the mean of the clients' deltas as the negative gradient."""
        raise NotImplementedError

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.fedavg import FedAvgServer

        deterministic, shares = self.deterministic, self.cohort
        return FedAvgServer(
            start.weights, start.trainable, update=self.update(), device=device, deterministic=deterministic, shares=shares
        )


ATTENDING = ("clock", "traces", "trace_period", "task_memory", "concurrency")  # settings by which clients cannot be asked


def check_drawn(method: InRounds, why: str, *keeps: str) -> None:
    """Raises UserError for a setting by which others are asked than a method draws, if it has not its default. keeps: settings
    that may have another value. why: the end of the error's line."""
    known = ranges(method)
    for name in (*ATTENDING, *InRounds.__annotations__):
        if name in known and name not in keeps and (value := getattr(method, name)) != known[name].default:
            raise UserError(f"{name}={shown(value)}: {why}")


@dataclass(frozen=True)
class FedAvg(InRounds):
    """Federated averaging (McMahan et al. 2017). With a server_optimizer other than SGD it is a form of FedOpt."""

    name: ClassVar[str] = "fedavg"

    server_optimizer: str = option(
        "sgd", "optimizer of the server; the negative mean of the clients' deltas is its gradient", choices=OPTIMIZERS, own=True
    )

    def update(self) -> Update:
        from shoal.nets.updates import update_of

        return update_of(self.server_optimizer, lr=self.server_lr)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        check_made(self, "server_optimizer", "server_lr")

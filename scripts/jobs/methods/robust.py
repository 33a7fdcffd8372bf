"""Robust methods: FedAvg's rounds and clients, and a rule in place of the mean that a minority of malicious clients cannot move
far.

The one idea: a method here names a rule of aggregators/ and the settings that the rule has; all else is FedAvg's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shoal.aggregators import Aggregator
from shoal.aggregators.breakdown import fewest, most, needed
from shoal.jobs.methods.fedavg import FedAvg
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option
from shoal.protocol.errors import UserError

if TYPE_CHECKING:
    from shoal.aggregators.robust import Rule


@dataclass(frozen=True)
class Unweighted(FedAvg):
    """FedAvg's rounds, with a server that counts each client alike: a malicious client could claim any number of examples."""

    weighting: str = option("users", "weight of a client's delta: 1 (users), whatever a client claims", choices=("users",))

    def rule(self, start: Start) -> Rule:
        raise NotImplementedError

    def robust(self, start: Start, device: str, **more: object) -> Aggregator:
        from shoal.aggregators.fedavg import FedAvgServer
        from shoal.aggregators.robust import RobustServer

        server = FedAvgServer(start.weights, start.trainable, update=self.update(), device=device, deterministic=False)
        return RobustServer(server, self.rule(start), seed=start.seed, **more)  # type: ignore[arg-type]

    def aggregator(self, start: Start, device: str) -> Aggregator:
        return self.robust(start, device)


@dataclass(frozen=True)
class Robust(Unweighted):
    """A rule that withstands up to `malicious` clients of a round, perhaps after mixing or bucketing."""

    malicious: int = option(1, "clients of a round that may be malicious (the papers' f)", least=0)
    pre_aggregation: str = option(
        "none",
        "what is done to a round's deltas before the rule: nnm replaces each by the mean of those nearest to it, bucketing by "
        "the means of random groups",
        choices=("none", "nnm", "bucketing"),
    )
    bucket_size: int = option(2, "clients in one group of bucketing", least=2, of={"pre_aggregation": ("bucketing",)})

    def check(self, problem: Problem) -> None:
        super().check(problem)
        least = fewest(self.name, self.malicious)
        for setting in ("cohort", "quorum"):
            if (n := getattr(self, setting)) and self.rows(n) < least:
                has = f"{setting}={n}" + (f" in groups of {self.bucket_size} gives {self.rows(n)}" if n != self.rows(n) else "")
                f = most(self.name, self.rows(n))
                say = f"malicious={f}, say" if f >= 0 else f"{setting}={fewest(self.name, 1)}, say"
                wants = f"{self.name} needs {needed(self.name, self.malicious)} deltas a round"
                raise UserError(f"malicious={self.malicious}: {wants}; {has}; {say}")

    def rows(self, n: int) -> int:
        """The number of rows that the rule sees of n deltas."""
        return -(-n // self.bucket_size) if self.pre_aggregation == "bucketing" else n

    def aggregator(self, start: Start, device: str) -> Aggregator:
        return self.robust(start, device, pre=self.pre_aggregation, bucket_size=self.bucket_size)


@dataclass(frozen=True)
class Median(Robust):
    """The coordinate-wise median (Yin et al. 2018)."""

    name: ClassVar[str] = "median"

    def rule(self, start: Start) -> Rule:
        from shoal.aggregators.median import Median

        return Median(self.malicious)


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """The coordinate-wise trimmed mean (Yin et al. 2018)."""

    name: ClassVar[str] = "trimmed_mean"

    def rule(self, start: Start) -> Rule:
        from shoal.aggregators.median import TrimmedMean

        return TrimmedMean(self.malicious)


@dataclass(frozen=True)
class Krum(Robust):
    """Krum (Blanchard et al. 2017): the one delta whose nearest neighbours are nearest."""

    name: ClassVar[str] = "krum"

    def rule(self, start: Start) -> Rule:
        from shoal.aggregators.krum import Krum

        return Krum(self.malicious)


@dataclass(frozen=True)
class MultiKrum(Robust):
    """Multi-Krum (Blanchard et al. 2017): the mean of the deltas that Krum would choose first."""

    name: ClassVar[str] = "multikrum"

    keep: int = option(0, "deltas that are averaged, those of smallest score (0: the cohort less `malicious`)", least=0)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.keep > self.rows(self.cohort):
            raise UserError(f"keep={self.keep}: allowed is from 0 to the {self.rows(self.cohort)} deltas of a round")

    def rule(self, start: Start) -> Rule:
        from shoal.aggregators.krum import MultiKrum

        return MultiKrum(self.malicious, self.keep)


@dataclass(frozen=True)
class Bulyan(Robust):
    """Bulyan (El Mhamdi et al. 2018): a selection by Krum, then of each entry the values nearest to the median."""

    name: ClassVar[str] = "bulyan"

    def rule(self, start: Start) -> Rule:
        from shoal.aggregators.krum import Bulyan

        return Bulyan(self.malicious)


@dataclass(frozen=True)
class RFA(Robust):
    """The geometric median (Pillutla et al. 2022, RFA)."""

    name: ClassVar[str] = "rfa"

    iterations: int = option(100, "iterations of Weiszfeld's algorithm in one round", least=1)
    smoothing: float = option(1e-6, "least distance that a delta's weight is taken from (the paper's nu)", above=0)

    def rule(self, start: Start) -> Rule:
        from shoal.aggregators.rfa import RFA

        return RFA(self.malicious, self.iterations, self.smoothing)


@dataclass(frozen=True)
class CenteredClipping(Robust):
    """Centered clipping (Karimireddy et al. 2021): each delta counts by its difference from the last step, cut to a length."""

    name: ClassVar[str] = "centered_clipping"

    clip_radius: float = option(
        1.0, "largest L2 distance from the last round's step that a client's delta counts with (the paper's tau)", above=0
    )
    clip_iterations: int = option(1, "times that the differences are taken and cut in one round (the paper's L)", least=1)

    def rule(self, start: Start) -> Rule:
        from shoal.aggregators.centered_clipping import CenteredClipping

        return CenteredClipping(self.malicious, self.clip_radius, self.clip_iterations)

"""DP-FedAvg and FedAvg with local differential privacy.

The one idea: a guarantee holds for a whole job or not at all. So these methods bring the sampling that the accountant assumes,
clip and noise, and refuse every other part of a job that would break the guarantee.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from shoal.actors import Worker
from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.jobs.accounting import ACCOUNTANTS, Mechanism, accounting, least_noise
from shoal.jobs.methods.fedavg import FedAvg, check_drawn
from shoal.jobs.methods.local import WEIGHTINGS
from shoal.jobs.methods.method import Start, said
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option, ranges
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout
from shoal.protocol.private import CLIP_NORM, SECRET, key_of

if TYPE_CHECKING:
    from shoal.coordinator.keeping.charges import Charges
    from shoal.jobs.job import Job


@dataclass
class Account:
    """A run's privacy: what a version costs, what is charged, and the secret that noise and sampling follow from."""

    mechanism: Mechanism
    budget: float
    charges: Charges
    secret: bytes
    most: int

    def charged(self) -> int:
        return len(self.charges.tags)

    def charge(self, version: int, tag: str) -> dict[str, float]:
        """Charge a version, durably, and return the metric `epsilon`. Raises UserError if the budget does not pay for it."""
        number = self.charges.tags.get((version, tag), self.charged() + 1)
        if self.budget and number > self.most:
            raise UserError(
                f"the privacy budget is spent: epsilon={self.budget:g} pays for {self.most} noised versions, and version "
                f"{version} would be number {number}; it is not released. A larger epsilon needs a new run"
            )
        epsilon = self.mechanism.epsilon(number)
        self.charges.charge(version, tag, epsilon=epsilon)
        return {"epsilon": epsilon}


@dataclass(frozen=True)
class Private(FedAvg):
    """FedAvg with differential privacy: the settings that its two forms share."""

    clip_norm: float = option(1.0, "L2 norm that a client's delta is scaled down to if it is longer", above=0)
    noise_multiplier: float = option(
        0.0, "standard deviation of the noise as a multiple of clip_norm (0: the least that keeps epsilon)", least=0
    )
    epsilon: float = option(
        8.0, "privacy budget of the run, at delta: it ends before a version that would cost more (0: no budget)", least=0
    )
    delta: float = option(0.0, "probability with which epsilon may not hold (0: clients ** -1.1)", least=0, below=1)
    accountant: str = option(
        "pld", "accountant of dp-accounting: privacy loss distributions (pld), or Renyi (rdp)", choices=ACCOUNTANTS
    )
    noise_from: str = option(
        "system",
        "source of the secret that the noise follows from: the system's random numbers (system), or the run's seed, which "
        "repeats a run and lets everybody who knows it subtract the noise (seed)",
        choices=("system", "seed"),
    )
    weighting: str = option("users", "weight of a client's delta: 1 (users); samples is refused here", choices=WEIGHTINGS)
    account: Account | None = field(default=None, repr=False, compare=False)
    """That of the run's folder; None outside of a run."""

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if not (self.epsilon or self.noise_multiplier):
            raise UserError("epsilon=0 and noise_multiplier=0: there would be no noise; epsilon=8 or noise_multiplier=1, say")
        if self.weighting != "users":
            raise UserError(
                f"weighting={self.weighting}: {self.name} weighs every client alike, or the clip would not bound what a client "
                "changes; weighting=users"
            )
        if not self.deterministic:
            raise UserError(f"deterministic=false: {self.name} adds its noise to exact sums; leave deterministic=true")
        if self.delta_ >= 1 / self.clients:
            most = 1 / self.clients
            raise UserError(f"delta={self.delta:g}: must be below 1 / clients = {most:.3g}; delta=0 takes clients ** -1.1")

    @property
    def delta_(self) -> float:
        return self.delta or self.clients**-1.1

    def fits(self, job: Job) -> None:
        for wrap in job.around:
            if wrap.looks and not (wrap.packs and self.unpacks):
                raise UserError(
                    f"{said(wrap)}: with method={self.name} nothing may look at or change clients' "
                    f"deltas beside the clip, or the guarantee would not hold{self._unless(wrap)}"
                )

    @property
    def unpacks(self) -> bool:
        """True if deltas are clipped behind their compression."""
        return False

    def _unless(self, wrap: Any) -> str:
        return ""

    def mechanism(self, multiplier: float) -> Mechanism:
        raise NotImplementedError

    @cached_property
    def multiplier(self) -> float:
        """The noise multiplier; if none is set, the least that keeps epsilon for all rounds. Raises UserError if the plan costs
        more than epsilon."""
        if not self.noise_multiplier:
            return least_noise(self.epsilon, self.rounds, self.mechanism)
        its = self.mechanism(self.noise_multiplier)
        if self.epsilon and (cost := its.epsilon(self.rounds)) > self.epsilon:
            enough = least_noise(self.epsilon, self.rounds, self.mechanism)
            most = its.most(self.epsilon)
            fewer = f", or rounds={most}" if most else ""
            raise UserError(
                f"epsilon={self.epsilon:g}: {self.rounds} rounds with noise_multiplier={self.noise_multiplier:g} cost epsilon "
                f"{cost:.4g} at delta {self.delta_:.2g}; noise_multiplier={enough:g} keeps it{fewer}"
            )
        return self.noise_multiplier

    def try_out(self, seed: int) -> None:
        super().try_out(seed)
        accounting()
        self.prepare()

    def prepare(self) -> None:
        _ = self.multiplier

    def kept(self, folder: Path, seed: int) -> Self:
        """The method with the account of the run in `folder`, and with the noise that the run was begun with. Raises UserError
        if its budget does not pay for all rounds, and for terms other than those it was begun with."""
        from shoal.coordinator.keeping.charges import Charges

        charges = Charges(folder)
        multiplier = charges.terms.get("multiplier") or self.multiplier
        its = self.mechanism(multiplier)
        terms = {**asdict(its), "epsilon": self.epsilon}
        if odd := [name for name, value in terms.items() if charges.terms and charges.terms.get(name) != value]:
            was, now = charges.terms.get(odd[0]), terms[odd[0]]
            raise UserError(f"{charges.path}: the run was begun with {odd[0]}={was}, not {now}: begin a new run")
        most = its.most(self.epsilon) if self.epsilon else 0
        if self.epsilon and self.rounds > most:
            raise UserError(
                f"rounds={self.rounds}: epsilon={self.epsilon:g} with noise_multiplier={multiplier:g} pays for {most} rounds; "
                "a larger epsilon needs a new run"
            )
        secret = self.secret(folder, seed)
        charges.begin(terms)
        return replace(self, noise_multiplier=multiplier, account=Account(its, self.epsilon, charges, secret, most))

    def secret(self, folder: Path, seed: int) -> bytes:
        """The secret that the coordinator keeps with the run in `folder`; b"" if it needs none."""
        return b""

    def _seeded(self, seed: int) -> bytes:
        return key_of(seed.to_bytes(8, "little"), "secret")


@dataclass(frozen=True)
class DPFedAvg(Private):
    """DP-FedAvg (McMahan et al. 2018, algorithm 1, with the fixed-denominator estimator): clients' deltas are clipped, their
    sum is noised and divided by the expected size of the cohort. Adaptive clipping: Andrew et al. 2021."""

    name: ClassVar[str] = "dp_fedavg"
    independent: ClassVar[bool] = True

    sampling: str = option(
        "poisson",
        "how a round's clients are drawn: each by itself with probability cohort / clients (poisson), or cohort of them "
        "(fixed), which needs accountant=rdp",
        choices=("poisson", "fixed"),
    )
    clipping: str = option(
        "server",
        "where deltas are clipped: by the coordinator, which trusts no client to do so (server), or by the clients, whose "
        "actors may then send sums (client)",
        choices=("server", "client"),
    )
    clip_quantile: float = option(
        0.0,
        "share of the clients that clip_norm leaves unclipped, as it adapts (0: clip_norm stays as it is)",
        least=0,
        below=1,
    )
    clip_lr: float = option(0.2, "learning rate of the adaptive clip_norm, with clip_quantile", above=0)
    clip_count_stddev: float = option(
        0.0,
        "standard deviation of the noise on the count of unclipped clients, with clip_quantile (0: the larger of cohort / 20 "
        "and noise_multiplier)",
        least=0,
    )

    def check(self, problem: Problem) -> None:
        why = (
            f"{self.name} draws each round's clients at random and waits for all of them, or other clients' answers would "
            "decide whether a client counts; lease=60 gives up a slow client by itself"
        )
        check_drawn(self, why, "cohort", "eval_cohort")
        super().check(problem)
        if self.sampling == "fixed" and self.accountant == "pld":
            raise UserError("sampling=fixed: only Renyi accounting knows sampling without replacement; accountant=rdp")
        for name in ("clip_lr", "clip_count_stddev"):
            if not self.clip_quantile and (value := getattr(self, name)) != ranges(self)[name].default:
                raise UserError(f"{name}={value:g}: without clip_quantile clip_norm does not adapt; clip_quantile=0.5, say")
        if self.clip_quantile:
            self._check_count(self.noise_multiplier)

    @property
    def unpacks(self) -> bool:
        return self.clipping == "server"

    def _unless(self, wrap: Any) -> str:
        return "; clipping=server clips what the codec gives" if wrap.packs else ""

    def secret(self, folder: Path, seed: int) -> bytes:
        from shoal.coordinator.keeping.charges import secret_of

        return self._seeded(seed) if self.noise_from == "seed" else secret_of(folder)

    def _check_count(self, multiplier: float) -> float:
        """The standard deviation of the noise on the count, for this noise multiplier."""
        stddev = self.clip_count_stddev or max(self.cohort / 20, multiplier)
        if multiplier and 2 * stddev <= multiplier:
            raise UserError(
                f"clip_count_stddev={stddev:g}: must be above noise_multiplier / 2 = {multiplier / 2:g}, or the count alone "
                "would cost more than a version may"
            )
        return stddev

    def mechanism(self, multiplier: float) -> Mechanism:
        return Mechanism(multiplier, self.sampling, self.cohort, self.clients, self.delta_, self.accountant)

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        from shoal.coordinator.deciding.plans.sampled import Sampled, fixed_size, poisson

        secret = self.account.secret if self.account else self._seeded(seed)
        keyed, rate = partial(key_of, secret, "cohort"), self.cohort / self.clients
        select = poisson(self.clients, rate, keyed) if self.sampling == "poisson" else fixed_size(self.clients, keyed)
        every = self.eval_every if self.eval_cohort else 0
        return Sampled(
            self.clients,
            self.cohort,
            seed=seed,
            summed=sums,
            evaluate_every=every,
            evaluate_cohort=self.eval_cohort,
            asked=asked,
            select=select,
        )

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.around.private import Briefed, Noise, Noised
        from shoal.aggregators.fedavg import FedAvgServer

        account = self.account
        multiplier = account.mechanism.multiplier if account else 0.0
        noise = Noise(
            multiplier,
            self.clip_norm,
            self.cohort,
            quantile=self.clip_quantile,
            rate=self.clip_lr,
            count_stddev=self._check_count(multiplier),
        )
        kind = Briefed if self.tells_clip else Noised
        return kind(
            FedAvgServer(start.weights, start.trainable, update=self.update(), device=device),
            noise,
            secret=account.secret if account else bytes(SECRET),
            charge=account.charge if account else _uncharged,
            charged=account.charged if account else int,
            each=self.clipping == "server",
            trainable=start.trainable,
            clients=self.clients,
        )

    @property
    def tells_clip(self) -> bool:
        """True if clients are told the clip of each version, because they clip and it adapts."""
        return self.clipping == "client" and self.clip_quantile > 0

    def briefs(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        return [Layout.of({CLIP_NORM: ("f8", (1,))})] if self.tells_clip else super().briefs(problem, weights)

    def worker(self, problem: Problem, seed: int) -> Worker:
        made = super().worker(problem, seed)
        if self.clipping == "server":
            return made
        from shoal.actors.workers.private import Clipped

        return Clipped(made, self.clip_norm)


@dataclass(frozen=True)
class LocalDP(Private):
    """FedAvg with local differential privacy: each client clips its delta and adds noise before the delta leaves it, so that
    the guarantee holds against the coordinator too (Duchi et al. 2013; Gaussian mechanism)."""

    name: ClassVar[str] = "local_dp"

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if self.eval_cohort:
            raise UserError(
                f"eval_cohort={self.eval_cohort}: with method=local_dp a client tells nothing that is not noised, no scores "
                "either; eval_cohort=0"
            )

    def mechanism(self, multiplier: float) -> Mechanism:
        return Mechanism(multiplier, "none", 1, 1, self.delta_, self.accountant)

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.around.private import check_covered

        check_covered(start.weights.layout, start.trainable)
        return super().aggregator(start, device)

    def worker(self, problem: Problem, seed: int) -> Worker:
        from shoal.actors.workers.private import LocallyPrivate

        trainable = problem.first(seed)[1]
        secret = self._seeded(seed) if self.noise_from == "seed" else os.urandom(SECRET)
        made, noise = super().worker(problem, seed), self.noise_multiplier or self.multiplier
        return LocallyPrivate(made, self.clip_norm, noise, secret=secret, trainable=trainable)


def _uncharged(version: int, tag: str) -> dict[str, float]:
    raise UserError("differential privacy: a noised version is made in a run's folder only, where its charge is kept")

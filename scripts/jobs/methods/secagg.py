"""FedAvg by secure aggregation: the coordinator learns the sum of the clients' deltas and no client's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from shoal.actors import Worker
from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan, selection
from shoal.jobs.methods.fedavg import FedAvg, InRounds
from shoal.jobs.methods.method import Start
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option, ranges, shown
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout
from shoal.protocol.private import key_of

if TYPE_CHECKING:
    from shoal.jobs.job import Job
    from shoal.protocol.secagg import Terms

KEEPS = ("cohort",)
ATTENDING = ("clock", "traces", "trace_period", "task_memory", "concurrency")


@dataclass(frozen=True)
class SecAgg(FedAvg):
    """FedAvg whose sums are made by SecAgg+ (Bonawitz et al. 2017; Bell et al. 2020), with the bits of FedAvg."""

    name: ClassVar[str] = "secagg"
    independent: ClassVar[bool] = True
    journalled: ClassVar[bool] = False

    neighbours: int = option(
        0,
        "clients that a client shares masks and secrets with, an even number (0: all up to 64, then about 12 log2 of them)",
        least=0,
    )
    threshold: int = option(0, "neighbours that must answer to give a secret back, above half of them (0: two thirds)", least=0)
    least: int = option(0, "fewest clients in a sum; a round with fewer moves nothing (0: two thirds of the cohort)", least=0)

    def check(self, problem: Problem) -> None:
        known = ranges(self)
        for name in (*ATTENDING, *InRounds.__annotations__):
            if name in known and name not in KEEPS and (value := getattr(self, name)) != known[name].default:
                raise UserError(
                    f"{name}={shown(value)}: a round of secagg has five phases of the same clients, which are drawn uniformly; "
                    "lease=60 gives up a slow client, which then drops out"
                )
        super().check(problem)
        if not self.deterministic:
            raise UserError("deterministic=false: masks cancel in exact sums only; leave deterministic=true")
        try:
            from shoal.protocol.secagg import Aborted

            self.terms(b"", tuple(range(self.cohort)))
        except Aborted as wrong:
            raise UserError(f"method=secagg with cohort={self.cohort}: {wrong}") from None

    def fits(self, job: Job) -> None:
        if job.checks.each:
            raise UserError("norm_bound, max_examples: with method=secagg no client's own delta is seen; leave them at 0")
        for wrap in job.around:
            if wrap.looks:
                raise UserError(
                    f"around: {type(wrap).__name__} looks at each client's own delta or packs it, and with method=secagg only "
                    "sums are seen; leave out norm_factor, compress and wraps of your own"
                )
        if job.keeping.journal in ("ids", "payload"):
            raise UserError(f"journal={job.keeping.journal}: a masked vector is of use in its own round only; journal=off")
        if job.bearing.on_failure == "stop":
            raise UserError("on_failure=stop: with method=secagg a client that fails drops out; on_failure=continue")

    def try_out(self, seed: int) -> None:
        super().try_out(seed)
        try:
            import cryptography  # noqa: F401
        except ModuleNotFoundError:
            raise UserError("method=secagg needs cryptography, which is not installed: pip install 'shoal[secagg]'") from None

    def terms(self, session: bytes, clients: tuple[int, ...]) -> Terms:
        from shoal.protocol.secagg import Terms

        return Terms.of(session, clients, self.neighbours, self.threshold, self.least)

    @property
    def degree(self) -> int:
        return self.terms(b"", tuple(range(self.cohort))).degree

    @cached_property
    def root(self) -> bytes:
        """The secret that the clients' signing keys follow from. It is drawn before actors are forked, which share it."""
        return os.urandom(32)

    def prepare(self) -> None:
        _ = self.root

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        from shoal.coordinator.deciding.plans.phases import Phases
        from shoal.protocol.secagg import PHASES

        least = self.terms(b"", tuple(range(self.cohort))).least
        return Phases(self.clients, self.cohort, PHASES, least, seed=seed, asked=asked)

    def bounds(self, sums: bool) -> Bounds:
        return Bounds()

    def aggregator(self, start: Start, device: str) -> Aggregator:
        from shoal.aggregators.around.masked import Masked

        select = selection.uniform(self.clients, start.seed)
        inner = super().aggregator(start, device)
        return Masked(
            inner, self.terms, lambda version: tuple(sorted(select(version, self.cohort, ()))), self.degree, os.urandom
        )

    def layouts(self, problem: Problem, weights: Layout) -> list[Layout]:
        from shoal.aggregators.around.masked import vector_size
        from shoal.protocol import parcels

        return [*parcels.up(self.degree, vector_size(problem.first(0)[0].layout)).values()]

    def briefs(self, problem: Problem, weights: Layout) -> list[Layout]:
        from shoal.protocol import parcels

        return [*parcels.down(self.degree, self.cohort).values()]

    def worker(self, problem: Problem, seed: int) -> Worker:
        from shoal.actors.workers.masked import Masking
        from shoal.protocol.sealing import signer_of

        def signing(client: int) -> bytes:
            return key_of(self.root, "sign", client)

        known = {client: signer_of(signing(client)) for client in range(self.clients)}
        return Masking(super().worker(problem, seed), self.terms, self.degree, signing=signing, known=known, random=os.urandom)

"""FedAvg by secure aggregation: the coordinator learns the sum of the clients' deltas and no client's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

from shoal.actors import Worker
from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import Asked, Plan, selection
from shoal.jobs.members import Identity, Member, read_members, signing_seed
from shoal.jobs.methods.fedavg import FedAvg, check_drawn
from shoal.jobs.methods.method import Start, said
from shoal.jobs.problems import Problem
from shoal.jobs.settings import option
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout
from shoal.protocol.private import key_of

if TYPE_CHECKING:
    from shoal.jobs.job import Job
    from shoal.protocol.secagg import Terms


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
    members: str = option(
        "",
        "CSV file that names the key that plays each client and the key that signs for it, for actors from elsewhere (empty: "
        "the clients are played by the run's own actors)",
    )
    identity: Identity | None = field(default=None, repr=False, compare=False)
    """Of the actor in whose process this is, if it joined from elsewhere."""

    def check(self, problem: Problem) -> None:
        why = "a round of secagg has five phases of the same clients, which are drawn uniformly"
        check_drawn(self, f"{why}; lease=60 gives up a slow client, which then drops out", "cohort")
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
            bounds = {name: getattr(job.checks, name) for name in ("norm_bound", "max_examples")}
            typed = ", ".join(f"{name}={value:g}" for name, value in bounds.items() if value)
            raise UserError(f"{typed}: with method=secagg no client's own delta is seen; leave it out")
        for wrap in job.around:
            if wrap.looks:
                raise UserError(
                    f"{said(wrap)}: this looks at each client's own delta or packs it, and with method=secagg only sums are "
                    "seen; leave it out"
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

    @property
    def owners(self) -> Mapping[int, Member]:
        """Client -> its owner, from this machine's copy of the list; empty if the run's own actors play the clients."""
        path = self.identity.members if self.identity else self.members
        return read_members(path, self.clients) if path else {}

    def hosted(self, actors: int, joined: bool, keyed: bool) -> None:
        if self.members and (actors or not keyed):
            raise UserError(
                f"members={self.members}: its clients are played by actors from elsewhere, which prove their keys; start the "
                "run with `shoal coordinator JOB --bind ADDRESS --key NAME`, without --actors"
            )
        if joined and not self.members and not actors:
            raise UserError(
                "method=secagg: no actor from elsewhere can take part without a list of the clients' keys; give "
                "members=FILE.csv (docs/privacy.md), or --actors 2"
            )

    def elsewhere(self, identity: Identity | None) -> Self:
        if not self.members:
            raise UserError(
                "method=secagg: the coordinator's run has no members=FILE.csv, so only its own actors can play its clients"
            )
        if identity is None:
            raise UserError(
                "method=secagg: this actor needs --members FILE, your own copy of the list of the clients' keys, and --key and "
                "--server"
            )
        from shoal.protocol.sealing import signer_of

        method = replace(self, identity=identity)
        own = {client: its for client, its in method.owners.items() if its.key == identity.public}
        if not own:
            raise UserError(f"members={identity.members}: no client has this actor's key {identity.public}; add its rows")
        signer = signer_of(signing_seed(identity.secret))
        if wrong := [client for client, its in own.items() if its.signer != signer]:
            raise UserError(
                f"members={identity.members}: client {wrong[0]} has another signer than this actor's, which is {signer.hex()}"
            )
        least = self.terms(b"", tuple(range(self.cohort))).least
        if least < identity.least:
            raise UserError(
                f"--least {identity.least}: the coordinator's run makes sums of {least} clients, which tell more of each; "
                f"it must be started with least={identity.least} or more"
            )
        return method

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        from shoal.coordinator.deciding.plans.phases import Phases
        from shoal.protocol.secagg import PHASES

        least = self.terms(b"", tuple(range(self.cohort))).least
        owners = {client: its.key for client, its in self.owners.items()}
        return Phases(self.clients, self.cohort, PHASES, least, seed=seed, asked=asked, owners=owners)

    def bounds(self, sums: bool) -> Bounds:
        return Bounds(gather=len({its.key for its in self.owners.values()}))

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

        if owners := self.owners:
            mine = {client for client, its in owners.items() if self.identity and its.key == self.identity.public}
            seed_of = signing_seed(self.identity.secret) if self.identity else b""
            known = {client: its.signer for client, its in owners.items()}
        else:
            mine = set(range(self.clients))
            known = {client: signer_of(self._own_seed(client)) for client in mine}

        def signing(client: int) -> bytes:
            if client not in mine:
                raise ValueError(f"client {client} is another owner's: this actor has no key that signs for it")
            return seed_of if owners else self._own_seed(client)

        return Masking(super().worker(problem, seed), self.terms, self.degree, signing=signing, known=known, random=os.urandom)

    def _own_seed(self, client: int) -> bytes:
        """The seed of a client's signing key, if the run's own actors play the clients."""
        return key_of(self.root, "sign", client)

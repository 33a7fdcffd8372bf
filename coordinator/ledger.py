"""What is out, what came in, and what was said of it.

The one idea: a task that is out has one lease, and a contribution counts only against the lease it answers; so each is
counted at most once, whatever is repeated, late, or said by somebody else.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from shoal.coordinator.roster import Actor
from shoal.protocol.messages import TaskName
from shoal.protocol.work import Task

TRIES = 1 << 16  # an attempt is epoch * TRIES + tries
JUDGED = 8  # verdicts remembered an actor, beside as many as it can have tasks: more than it can have unacknowledged


@dataclass(slots=True)
class Lease:
    """A task given to an actor. attempt: differs between all leases of a task, in all lives of the coordinator.
    onto: the version that its contribution, now with the learner, builds on; -1 before that. pulled: it is done, and its
    arrays are on their way or wait until there is room for them here: nbytes in all, of which `left` are still to come."""

    task: Task
    clients: tuple[int, ...]
    attempt: int
    session: bytes
    since: float
    onto: int = -1
    steps: int = 0
    pulled: bool = False
    nbytes: int = 0
    left: int = 0

    @property
    def name(self) -> TaskName:
        return (self.task.version, self.task.index)

    @property
    def tries(self) -> int:
        """How often this life of the coordinator gave the task out, this time included."""
        return self.attempt % TRIES

    @property
    def folding(self) -> bool:
        return self.onto >= 0

    @property
    def trains(self) -> bool:
        return self.task.kind == "train"


@dataclass(slots=True)
class Counts:
    """Every Contribute gets exactly one verdict: heard == accepted + duplicate + stale + refused + folding."""

    heard: int = 0
    accepted: int = 0
    duplicate: int = 0
    stale: int = 0
    refused: int = 0
    folding: int = 0
    clients: int = 0  # contributions of clients folded in, however they travelled
    failed: int = 0
    aside: int = 0


@dataclass(slots=True)
class Coming:
    """What is with the learner for one version: clients, and the leases they came under."""

    clients: int = 0
    leases: int = 0


@dataclass(slots=True)
class Ledger:
    """Leases in the order they were given, tasks that came back unfinished (with how often they were tried), and the counts."""

    leases: OrderedDict[TaskName, Lease] = field(default_factory=OrderedDict)
    returned: deque[tuple[Task, int]] = field(default_factory=deque)
    parked: int = 0
    counts: Counts = field(default_factory=Counts)
    coming: dict[int, Coming] = field(default_factory=dict)
    folded: dict[int, int] = field(default_factory=dict)  # onto -> clients folded in
    most: int = 0  # tasks that an actor may hold

    def outstanding(self, but: int = 0) -> int:
        """Tasks given out or waiting to be given out again."""
        return len(self.leases) + len(self.returned) + self.parked - but

    def unpark(self, actor: Actor) -> None:
        """What waits for room at this actor may go to any."""
        self.returned.extend(actor.parked)
        self.parked -= len(actor.parked)
        actor.parked.clear()

    def take(self, lease: Lease, onto: int) -> None:
        """Its contribution goes to the learner."""
        lease.onto, lease.pulled = onto, False
        self.counts.folding += 1
        coming = self.coming.setdefault(onto, Coming())
        coming.leases += 1
        coming.clients += len(lease.clients) * lease.trains

    def untake(self, lease: Lease) -> None:
        """It is no longer with the learner."""
        self.counts.folding -= 1
        coming = self.coming[lease.onto]
        coming.leases -= 1
        coming.clients -= len(lease.clients) * lease.trains
        if not coming.leases:
            del self.coming[lease.onto]

    def count(self, lease: Lease) -> None:
        """The learner folded it in."""
        self.untake(lease)
        if lease.trains:
            self.folded[lease.onto] = self.folded.get(lease.onto, 0) + len(lease.clients)
            self.counts.clients += len(lease.clients)
        del self.leases[lease.name]

    def judge(self, actor: Actor, lease: Lease, verdict: str, reason: str) -> None:
        """The one verdict on a contribution, remembered so that a repeat gets the same."""
        setattr(self.counts, verdict, getattr(self.counts, verdict) + 1)
        self.remember(actor, lease, verdict, reason)

    def remember(self, actor: Actor, lease: Lease, verdict: str, reason: str) -> None:
        actor.judged[lease.name] = (lease.attempt, verdict, reason)
        actor.judged.move_to_end(lease.name)  # where an earlier attempt's was
        if len(actor.judged) > JUDGED + self.most:
            actor.judged.popitem(last=False)

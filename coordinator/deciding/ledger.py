"""What is out, what came in, and what was said of it.

The one idea: a task that is out has one lease, and a contribution counts only against the lease it answers; so each is
counted at most once, whatever is repeated, late, or said by somebody else.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from types import MappingProxyType

from shoal.coordinator.deciding.events import Briefed
from shoal.coordinator.deciding.plans import NEWS, Outcome
from shoal.coordinator.deciding.promises import Promise
from shoal.coordinator.deciding.roster import Actor
from shoal.coordinator.deciding.verdicts import Verdicts
from shoal.protocol.messages import Contribute, TaskName, Verdict
from shoal.protocol.work import Task, Totals

NONE: Totals = MappingProxyType({})
TRIES = 1 << 16  # an attempt is epoch * TRIES + tries


@dataclass(slots=True)
class Lease:
    """A task given to an actor. attempt: differs between all leases of a task, in all lives of the coordinator.
    onto: the version that its contribution `done`, now with the learner, builds on; -1 before that. pulled: it is done, and its
    arrays are on their way or wait until there is room for them here: nbytes in all, of which `left` are still to come.
    briefing: the learner makes its brief, and its actor has not heard of it yet. brief: what came of that; until the task is
    done, nbytes and left are of the brief, on its way to the actor. promise: it was given, and its contribution accepted, in an
    earlier life, which could not keep it. offered: its actor has it still, and its turn will come."""

    task: Task
    clients: tuple[int, ...]
    attempt: int
    session: bytes
    since: float
    onto: int = -1
    done: Contribute | None = None
    pulled: bool = False
    nbytes: int = 0
    left: int = 0
    briefing: bool = False
    brief: Briefed | None = None
    promise: Promise | None = None
    offered: Contribute | None = None

    @property
    def name(self) -> TaskName:
        return (self.task.version, self.task.index)

    @property
    def tries(self) -> int:
        """How often this life of the coordinator gave the task out, this time included."""
        return self.attempt % TRIES

    @property
    def moving(self) -> bool:
        """Are arrays of it on their way, some of which are there already?"""
        return self.pulled or 0 < self.left < self.nbytes

    @property
    def folding(self) -> bool:
        return self.onto >= 0

    @property
    def counts(self) -> bool:
        return self.task.counts


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
    later: list[tuple[Task, int]] = field(default_factory=list)  # the same, of versions that are still to come
    parked: int = 0
    counts: Counts = field(default_factory=Counts)
    coming: dict[int, Coming] = field(default_factory=dict)
    folded: dict[int, int] = field(default_factory=dict)  # onto -> clients folded in
    verdicts: Verdicts = field(default_factory=Verdicts)
    news: deque[Outcome] = field(default_factory=lambda: deque(maxlen=NEWS))  # that the plan has not heard
    promised: Counter[int] = field(default_factory=Counter)  # onto -> leases that are promises for it

    def outstanding(self, version: int, but: int = 0) -> int:
        """Tasks given out or waiting to be given out again, without promises for what comes after `version`."""
        later = sum(many for onto, many in self.promised.items() if onto > version) if self.promised else 0
        return len(self.leases) + len(self.returned) + self.parked - later - but

    def promise(self, promise: Promise, now: float) -> None:
        """An earlier life accepted this, and its actor has it still."""
        lease = Lease(promise.task, promise.clients, promise.attempt, promise.session, now, promise=promise)
        self.leases[lease.name] = lease
        self.promised[promise.onto] += 1

    def promises(self, upto: int | None = None) -> list[Lease]:
        """Those left, for versions to `upto`."""
        if not self.promised:
            return []
        return [one for one in self.leases.values() if one.promise and (upto is None or one.promise.onto <= upto)]

    def renew(self, lease: Lease, now: float) -> None:
        """Its time begins now."""
        lease.since = now
        self.leases.move_to_end(lease.name)

    def reach(self, version: int) -> None:
        """What is for this version, and came back before it was there, may be given out now."""
        if self.later:
            self.returned.extend(one for one in self.later if one[0].version <= version)
            self.later = [one for one in self.later if one[0].version > version]

    def close(self, version: int) -> None:
        """What waits to be done, and is for earlier versions than this, will not be."""
        self.news.extend(Outcome(task, "stale", 0.0, NONE) for task, _ in self.returned if task.version < version)
        self.returned = deque(one for one in self.returned if one[0].version >= version)

    def end(self, lease: Lease) -> None:
        """It is over, however it ended."""
        del self.leases[lease.name]
        if lease.promise:
            self.promised[lease.promise.onto] -= 1
            self.promised = +self.promised  # those that are left

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
        coming.clients += len(lease.clients) * lease.counts

    def untake(self, lease: Lease) -> None:
        """It is no longer with the learner."""
        self.counts.folding -= 1
        coming = self.coming[lease.onto]
        coming.leases -= 1
        coming.clients -= len(lease.clients) * lease.counts
        if not coming.leases:
            del self.coming[lease.onto]

    def count(self, lease: Lease) -> None:
        """The learner folded it in."""
        self.untake(lease)
        if lease.counts:
            self.folded[lease.onto] = self.folded.get(lease.onto, 0) + len(lease.clients)
            self.counts.clients += len(lease.clients)
        self.end(lease)

    def note(self, lease: Lease, word: str, now: float, totals: Totals = NONE) -> None:
        """For the plan."""
        self.news.append(Outcome(lease.task, word, now - lease.since, totals))

    def judge(self, session: bytes, verdict: Verdict) -> None:
        """The one verdict on a contribution, remembered so that a repeat gets the same."""
        setattr(self.counts, verdict.verdict, getattr(self.counts, verdict.verdict) + 1)
        self.verdicts.remember(session, verdict)

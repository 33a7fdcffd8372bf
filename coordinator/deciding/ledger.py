"""Leases of the tasks that are out, and counts of and verdicts on the contributions that came in.

The one idea: a task that is out has one lease, and a contribution counts only against the lease it answers; so each task is
counted at most once, even if contributions are repeated, late, or said by another actor.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType

from shoal.coordinator.deciding.actor import Actor, Pending
from shoal.coordinator.deciding.events import Briefed
from shoal.coordinator.deciding.plans import NEWS, Outcome
from shoal.coordinator.deciding.promises import Promise
from shoal.coordinator.deciding.verdicts import Verdicts
from shoal.protocol.messages import Contribute, TaskName, Verdict
from shoal.protocol.work import Task, Totals

NONE: Totals = MappingProxyType({})
VAIN = 100  # tasks of a stream that may be set aside one after the other, with no contribution in between
TRIES = 1 << 16  # an attempt is epoch * TRIES + tries


@dataclass(slots=True)
class Lease:
    """A task given to an actor.

    attempt: differs between all leases of a task, in all lives of the coordinator. since: the time, in seconds, from
    which its limit counts, unless its actor was free later (`Actor.free_at`); given_at: the time at which it was given. ready:
    weights that it can be done from are with its actor. took: seconds of work until its result came; -1 before that. faults,
    alone: as in Pending.
    done: the contribution that is with the learner; onto: version that `done` builds on, -1 before that. pulled: the task is
    done, and its arrays are on their way or wait for room here: nbytes in all, of which `left` are still to come. briefing:
    the learner makes the brief, and the actor has not heard of the task. brief: the brief made; until the task is done, nbytes
    and left are of the brief, on its way to the actor. promise: an earlier life gave the task and accepted its contribution,
    but could not keep it. offered: the promised contribution, which its actor keeps until its version is there. held: the
    newest version that its actor had when it got the task.
    """

    task: Task
    clients: tuple[int, ...]
    attempt: int
    session: bytes
    since: float
    faults: int = 0
    alone: bool = False
    ready: bool = False
    took: float = -1.0
    onto: int = -1
    done: Contribute | None = None
    pulled: bool = False
    nbytes: int = 0
    left: int = 0
    briefing: bool = False
    brief: Briefed | None = None
    promise: Promise | None = None
    offered: Contribute | None = None
    held: int = -1
    given_at: float = field(init=False)
    name: TaskName = field(init=False)
    counts: bool = field(init=False)

    def __post_init__(self) -> None:
        self.given_at, self.name, self.counts = self.since, (self.task.version, self.task.index), self.task.counts

    @property
    def tries(self) -> int:
        """Return how often this life of the coordinator gave the task out, this time included."""
        return self.attempt % TRIES

    @property
    def moving(self) -> bool:
        """Return whether arrays of the task are half-way to or from its actor."""
        return self.pulled or 0 < self.left < self.nbytes

    @property
    def folding(self) -> bool:
        return self.onto >= 0


@dataclass(slots=True)
class Counts:
    """Counts of contributions by their verdicts, of which each gets exactly one, and of faults."""

    accepted: int = 0
    duplicate: int = 0
    stale: int = 0
    refused: int = 0
    folding: int = 0
    clients: int = 0  # clients whose contributions are folded in, alone or in a sum
    failed: int = 0
    aside: int = 0
    deaths: int = 0  # deaths of actors that were blamed on a task
    dropped: int = 0  # environment steps of contributions that came too late

    @property
    def heard(self) -> int:
        """Return the number of contributions that were heard and are not being fetched."""
        return self.accepted + self.duplicate + self.stale + self.refused + self.folding


@dataclass(slots=True)
class Coming:
    """Numbers of the clients, and of their leases, whose contributions to one version are with the learner."""

    clients: int = 0
    leases: int = 0


@dataclass(slots=True)
class Ledger:
    """Leases in the order they were given, tasks that came back unfinished, and the counts."""

    leases: OrderedDict[TaskName, Lease] = field(default_factory=OrderedDict)
    returned: deque[Pending] = field(default_factory=deque)
    evaluations: deque[Pending] = field(default_factory=deque)  # that wait; those that failed are in returned
    took: dict[str, deque[float]] = field(default_factory=dict)  # kind -> seconds of work at its last tasks that came in
    later: list[Pending] = field(default_factory=list)  # returned tasks of versions that are still to come
    parked: int = 0
    counts: Counts = field(default_factory=Counts)
    coming: dict[int, Coming] = field(default_factory=dict)
    folded: dict[int, int] = field(default_factory=dict)  # onto -> clients folded in
    verdicts: Verdicts = field(default_factory=Verdicts)
    news: deque[Outcome] = field(default_factory=lambda: deque(maxlen=NEWS))  # outcomes that the plan has not heard
    left_out: dict[int, str] = field(default_factory=dict)  # client -> why its last task was set aside
    vain: int = 0  # tasks that count and were set aside since a contribution was folded in
    promised: Counter[int] = field(default_factory=Counter)  # onto -> number of promises for it

    def outstanding(self, version: int, but: int = 0) -> int:
        """Return the number of tasks given out or waiting to be given out again, less promises for versions after `version`
        and less `but`."""
        later = sum(many for onto, many in self.promised.items() if onto > version) if self.promised else 0
        return len(self.leases) + self.waiting - later - but

    @property
    def waiting(self) -> int:
        """Return the number of tasks that wait to be given out: for any actor, for an evaluator, or for room at one actor."""
        return len(self.returned) + len(self.evaluations) + self.parked

    def evaluating(self) -> list[int]:
        """Return, for each evaluation that is out, the oldest version that its actor may play."""
        return [max(lease.task.version, lease.held) for lease in self.leases.values() if not lease.counts]

    def promise(self, promise: Promise, now: float) -> None:
        """Add a lease for a promise: an earlier life accepted the contribution, and its actor may offer it again."""
        lease = Lease(promise.task, promise.clients, promise.attempt, promise.session, now, promise=promise)
        self.leases[lease.name] = lease
        self.promised[promise.onto] += 1

    def promises(self, upto: int | None = None) -> list[Lease]:
        """Return the leases of the promises that are left, for versions up to `upto`; for all versions if None."""
        if not self.promised:
            return []
        return [one for one in self.leases.values() if one.promise and (upto is None or one.promise.onto <= upto)]

    def renew(self, lease: Lease, now: float) -> None:
        """Begin the time of a lease now."""
        lease.since = now
        self.leases.move_to_end(lease.name)

    def put_back(self, *ones: Pending, first: bool = False) -> None:
        """Let tasks wait to be given out. An evaluation waits for evaluators; an evaluation that failed waits for actors that
        contribute, because what an evaluator lacks, it lacks at every attempt. first: they wait before all others."""
        for one in ones:
            queue = self.returned if one.task.counts or one.faults else self.evaluations
            if first:
                queue.appendleft(one)
            else:
                queue.append(one)

    def drop(self, over: Callable[[Task], bool]) -> list[Task]:
        """Drop and return the tasks of which this is true and that wait, but not for room at one actor."""
        dropped = [one.task for one in (*self.returned, *self.evaluations, *self.later) if over(one.task)]
        if dropped:
            self.returned = deque(one for one in self.returned if not over(one.task))
            self.evaluations = deque(one for one in self.evaluations if not over(one.task))
            self.later = [one for one in self.later if not over(one.task)]
        return dropped

    def reach(self, version: int) -> None:
        """Free the tasks of versions up to this one that came back before their version was there."""
        if self.later:
            self.put_back(*(one for one in self.later if one.task.version <= version))
            self.later = [one for one in self.later if one.task.version > version]

    def close(self, version: int) -> None:
        """Drop returned tasks of versions before this one, as stale."""
        late = self.drop(lambda task: task.version < version)
        self.news.extend(Outcome(task, "stale", 0.0, NONE) for task in late)

    def end(self, lease: Lease) -> None:
        """Remove a lease, however it ended."""
        del self.leases[lease.name]
        if lease.promise:
            self.promised[lease.promise.onto] -= 1
            self.promised = +self.promised  # zeros are dropped

    def unpark(self, actor: Actor) -> None:
        """Free the tasks that wait for room at this actor for any actor."""
        self.put_back(*actor.parked)
        self.parked -= len(actor.parked)
        actor.parked.clear()
        if actor.alone not in actor.tasks:
            actor.alone = None  # it waited to be tried alone here

    def take(self, lease: Lease, onto: int) -> None:
        """Count a lease whose contribution goes to the learner."""
        lease.onto, lease.pulled = onto, False
        self.counts.folding += 1
        coming = self.coming.setdefault(onto, Coming())
        coming.leases += 1
        coming.clients += len(lease.clients) * lease.counts

    def untake(self, lease: Lease) -> None:
        """Discount a lease whose contribution is no longer with the learner."""
        self.counts.folding -= 1
        coming = self.coming[lease.onto]
        coming.leases -= 1
        coming.clients -= len(lease.clients) * lease.counts
        if not coming.leases:
            del self.coming[lease.onto]

    def count(self, lease: Lease) -> None:
        """End a lease whose contribution the learner folded in, and count its clients."""
        self.untake(lease)
        if lease.counts:
            self.folded[lease.onto] = self.folded.get(lease.onto, 0) + len(lease.clients)
            self.counts.clients += len(lease.clients)
            self.vain = 0
            for client in lease.clients if self.left_out else ():
                self.left_out.pop(client, None)
        self.end(lease)

    def spent(self, kind: str, seconds: float) -> None:
        """Note the seconds of a task that came in."""
        if (took := self.took.get(kind)) is None:
            took = self.took[kind] = deque(maxlen=99)
        took.append(seconds)

    def note(self, lease: Lease, word: str, now: float, totals: Totals = NONE) -> None:
        """Note what became of a lease, for the plan."""
        self.news.append(Outcome(lease.task, word, now - lease.given_at, totals))

    def judge(self, session: bytes, verdict: Verdict) -> None:
        """Count and remember the one verdict on a contribution, so that a repeat gets the same."""
        setattr(self.counts, verdict.verdict, getattr(self.counts, verdict.verdict) + 1)
        self.verdicts.remember(session, verdict)

"""Contributions that count, and the versions made of them: the books of a run over all lives of its coordinator.

The one idea: the weights themselves list the contributions in them, so the books are compared with the weights, never with the
core's word about itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.events import Fold, Step, Stepped
from shoal.protocol.draws import draw
from shoal.protocol.messages import Assign, TaskName
from shoal.protocol.work import Task, Words
from shoal.simulation.disk import Handout
from shoal.simulation.setting import Setting

if TYPE_CHECKING:
    from shoal.simulation.actors import Product
    from shoal.simulation.hub import Hub


class ViolationError(AssertionError):
    """An invariant does not hold."""


def wrong(what: str) -> NoReturn:
    raise ViolationError(what)


@dataclass(slots=True)
class Holding:
    """The hold of a session on a task now."""

    session: bytes
    attempt: int
    clients: tuple[int, ...]
    told: tuple[str, bool, Words]  # kind, counts and words of the task
    since: float
    handout: Handout | None = None
    briefing: bool = False  # the learner makes the task's brief
    ready: bool = False  # weights that the task can be done from are with its actor
    took: float = -1.0  # seconds of work until its result came; -1 before that
    left: int = 0  # bytes of the task's brief that are still to come
    alone: bool = False  # a death was blamed on the task, and it is tried alone
    owed: Taken | None = None  # the contribution that an earlier life acknowledged, and did not keep

    @property
    def counts(self) -> bool:
        return self.told[1]


@dataclass(slots=True)
class Taken:
    """A contribution that went to the learner, or was counted."""

    task: TaskName
    holding: Holding
    actor: Actor
    onto: int
    steps: int
    product: Product | None  # None if the task does not count as training

    @property
    def number(self) -> int:
        return self.product.number if self.product else 0


@dataclass(slots=True)
class Row:
    """A life of an actor at one life of the coordinator. actor: the core's own object, whose identity tells lives apart."""

    actor: Actor
    peer: bytes
    tasks: set[TaskName] = field(default_factory=set)
    sent: int = -1
    held: int = -1
    under_way: bool = False
    greeting: int = 0
    spoke: bool = False
    stuck: bool = False
    runs: tuple[int, ...] = ()  # task and attempt that its last Beat named, unless its result came since
    free_at: float = -math.inf  # time when a result of a task that it was given came last
    dropped: deque[tuple[int, ...]] = field(default_factory=lambda: deque(maxlen=8))  # tasks and attempts taken back from it
    away: bool = False
    mute: bool = False  # nothing comes over its connection
    barred: bool = False
    settled: bool = False  # the actor has sent a Have or Beat since its welcome, and so has offered all its work
    heard_at: float = 0.0
    evaluates: bool = False  # it does evaluations alone
    briefed: set[int] = field(default_factory=set)  # clients of which it was told a task whose brief was made

    @property
    def able(self) -> bool:
        """Return whether the actor can be given tasks."""
        return not (self.stuck or self.away or self.barred or self.mute)


class Books:
    """The books. taken: contributions of any life, by product number. acked: acknowledged contributions, still promised.
    owed: acknowledged contributions that no life has kept and actors have, by task and attempt."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.taken: dict[int, Taken] = {}
        self.acked: list[Taken] = []
        self.owed: dict[tuple[TaskName, int], Taken] = {}
        self.digests: dict[int, int] = {}
        self.epoch = self.published = 0

    def begin(self, hub: Hub) -> None:
        """Begin a new life of the coordinator: contributions promised to be kept are there; others not there do not count."""
        self.hub = hub
        (version, shown), model = hub.published, hub.learner.adder.model
        folded = [number for _, number in hub.learner.adder.folded]
        kept = {*model.products(), *folded}
        self._promises(kept)
        self._owe(kept)
        self.acked = [taken for taken in self.acked if taken.number in kept]
        self.published, self.made = version, {version: shown.digest}
        self.shown = dict(self.made)  # version -> digest, of all versions of this life
        if not self.setting.forks and self.digests.setdefault(version, model.digest) != model.digest:
            wrong(f"version {version} had other weights in an earlier life")
        self.lineage = {version: [self.taken[number] for number in folded]}
        self.numbers = kept
        self.identities = {what for number in kept for what in self._identities(self.taken[number])}
        self.steps = sum(self.taken[number].steps for number in kept)
        self.stepping, self.aside, self.stepped_at = False, 0, -math.inf

    def _promises(self, kept: set[int]) -> None:
        """Check the promises of earlier lives: acknowledged contributions and published versions are known after any death."""
        if self.hub.core.facts.epoch <= self.epoch:
            wrong(f"epoch {self.hub.core.facts.epoch} follows {self.epoch}")
        self.epoch = self.hub.core.facts.epoch
        if self.setting.journal == "off":
            return
        durable = (
            self.hub.found.version if self.setting.journal == "payload" else max(self.hub.found.newest, self.hub.found.version)
        )
        if durable < self.published:
            wrong(f"version {self.published} was published, and {durable} is all that is durable")
        known = self.hub.world.disk.log.accepted() if self.setting.journal == "ids" else set()
        for taken in self.acked:
            if taken.number not in kept and (*taken.task, taken.holding.attempt) not in known:
                wrong(f"task {taken.task} was acknowledged, and is lost")

    def _owe(self, kept: set[int]) -> None:
        """Check that the core asks actors for the acknowledged contributions that are not kept, if actors retain them."""
        self.owed = {name: taken for name, taken in self.owed.items() if taken.number not in kept}
        if not self.setting.bounds.retain:
            return
        for taken in self.acked:
            if taken.number not in kept:
                self.owed[taken.task, taken.holding.attempt] = taken
        known = {(promise.task.name, promise.attempt) for promise in self.hub.found.promises}
        if missing := self.owed.keys() - known:
            wrong(f"{missing} were acknowledged, and nobody is asked for them")

    def paid(self, taken: Taken) -> None:
        """Check a contribution that counts now, if an earlier life had acknowledged it: the same work, for the same version."""
        owed = self.owed.pop((taken.task, taken.holding.attempt), None)
        if owed is None:
            return
        if taken.number != owed.number and owed.product:
            wrong(f"task {taken.task} was acknowledged with {owed.product}, and counts with {taken.product}")
        if taken.onto != owed.onto and not self.setting.schedule.streams:
            wrong(f"task {taken.task} was acknowledged for version {owed.onto}, and counts for {taken.onto}")

    def _identities(self, taken: Taken) -> list[tuple[int, int]]:
        """Names of work that must count once and never again: a stream's task number, or each client of a round."""
        if self.setting.schedule.streams:
            return [(0, taken.task[1])]
        return [(taken.onto, client) for client in taken.holding.clients]

    # Contributions

    def fits(self, effect: Fold, product: Product | None, handout: Handout | None) -> None:
        """Check a contribution that trains: it is fresh enough for its version, and made from the very weights that it names. A
        promised contribution was checked in an earlier life."""
        message = effect.message
        if message.summed != self.setting.bounds.summed:
            wrong(f"{message}: summed is {message.summed}")
        if effect.onto < self.hub.core.facts.version + self.stepping:
            wrong(f"{message} goes onto version {effect.onto}, which is closed")
        if effect.promised:
            return
        if not 0 <= effect.onto - message.made_from <= self.setting.schedule.lag:
            wrong(f"{message} goes onto version {effect.onto}")
        if product and product.honest:
            if product.torn:
                wrong(f"{message} was made from weights that were written anew meanwhile")
            if product.model is None or self.made.get(message.made_from) != product.model.digest:
                wrong(f"{message} was made from other weights of that version")
            if product.handout is not handout:
                wrong(f"{message} was made with {product.handout}, and {handout} is its brief")
            if product.clients != effect.clients:
                wrong(f"{message} is of clients {product.clients}, and counts for {effect.clients}")

    def count(self, taken: Taken) -> None:
        """Count a contribution that trains, which the learner has folded in."""
        identities = self._identities(taken)
        if taken.number in self.numbers or not self.identities.isdisjoint(identities):
            wrong(f"the work of task {taken.task}, for {taken.holding.clients}, is counted twice")
        self.numbers.add(taken.number)
        self.identities.update(identities)
        self.lineage.setdefault(taken.onto, []).append(taken)
        self.acked.append(taken)
        self.steps += taken.steps

    # Versions

    def step(self, effect: Step, folding: Iterable[Taken], seconds: float) -> None:
        """Check a step. folding: contributions on their way to the learner; seconds: since the round began."""
        version = self.hub.core.facts.version
        if effect.version != version + 1 or self.stepping:
            wrong(f"{effect} at version {version}")
        self.stepping = True
        if any(taken.onto <= version and taken.holding.counts for taken in folding):
            wrong(f"{effect} while contributions to it are on their way to the learner")
        if effect.steps != self.steps:
            wrong(f"{effect}, and {self.steps} steps were counted")
        counted = self.lineage.get(version, [])
        if self.setting.schedule.streams:
            self._full(effect, counted)
        else:
            self._closed(effect, counted, seconds)

    def _full(self, effect: Step, counted: list[Taken]) -> None:
        """Check a stream's step: it is of exactly a batch, or at least a batch at the end of its period, and its snapshot knows
        every task in it. A period does not begin before the last step of this life."""
        s = self.setting.schedule
        if len(counted) < s.batch or (len(counted) > s.batch and not s.period):
            wrong(f"{effect} of {len(counted)} contributions, not {s.batch}")
        now = self.hub.core.facts.now
        if now - self.stepped_at < s.period - 1e-9:
            wrong(f"{effect} {now - self.stepped_at:.3f} s after the last step, in a period of {s.period:g} s")
        self.stepped_at = now
        if any(taken.task[1] >= effect.drawn for taken in counted):
            wrong(f"{effect} counts a task that is drawn again after a restart")

    def _closed(self, effect: Step, counted: list[Taken], seconds: float) -> None:
        """Check a round's step: of its cohort, each client once; of fewer only after the deadline, or with tasks set aside."""
        s, version = self.setting.schedule, self.hub.core.facts.version
        clients = [client for taken in counted for client in taken.holding.clients]
        asked = s.cohort + s.spare
        cohort = range(s.clients) if asked == s.clients else draw(s.seed, "cohort", version).sample(range(s.clients), asked)
        if len(set(clients)) < len(clients) or not set(clients) <= set(cohort) or not clients:
            wrong(f"{effect} of clients {clients}, where the cohort is {cohort}")
        promised = version <= max((one.onto for one in self.hub.found.promises), default=self.hub.found.version)
        if len(clients) > s.cohort and not promised:  # a restarted round also takes what was promised
            wrong(f"{effect} of {len(clients)} clients, more than its cohort of {s.cohort}")
        cut = 0 < s.deadline <= seconds and len(clients) >= s.quorum
        if len(clients) < s.cohort and not cut and not self.aside:
            wrong(f"{effect} of {len(clients)} clients of {s.cohort}")

    def stepped(self, event: Stepped) -> None:
        (version, shown), model = self.hub.published, self.hub.learner.adder.model
        if event.version != version or version != self.published + 1 or not self.stepping:
            wrong(f"version {version} follows {self.published}")
        if not self.setting.schedule.streams and any(owed.onto == version - 1 for owed in self.owed.values()):
            wrong(f"version {version} is made without what was acknowledged for it")
        if sorted(number for _, number in model.folded) != sorted(one.number for one in self.lineage.pop(version - 1)):
            wrong(f"version {version} is not the sum of what was accepted for it")
        if not self.setting.forks and self.digests.setdefault(version, model.digest) != model.digest:
            wrong(f"version {version} has other weights than in an earlier life")
        self.made[version] = self.shown[version] = shown.digest
        self.made.pop(version - self.setting.schedule.lag - 2, None)
        self.published, self.stepping, self.aside = version, False, 0


def told(task: Task | Assign) -> tuple[str, bool, Words]:
    """The kind, counts and words of a task: all that a worker learns of a task beside its name and clients."""
    return (task.kind, task.counts, task.words)

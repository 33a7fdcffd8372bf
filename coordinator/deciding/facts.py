"""The facts of a run that core, contributions, desk, membership and patience share.

The one idea: each of these modules is handed the facts and not the core, so they import each other in one direction only.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.events import Effect, Finish, Send
from shoal.coordinator.deciding.farewell import Farewell
from shoal.coordinator.deciding.ledger import Ledger
from shoal.coordinator.deciding.plans import Plan, Seats
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.deciding.roster import Roster
from shoal.coordinator.deciding.verdicts import Verdicts
from shoal.protocol.messages import Envelope, Message, Refused, Stop


class Facts:
    """The facts. Times are in seconds of a clock that never goes back.

    epoch: number of this life of the coordinator. version: newest version of the weights. since: version whose step last
    changed the weights. steps: environment steps folded in. drawn: tasks that the plan has given out. kept: newest version in
    a snapshot, -1 if none. reached: the goal is reached. stepping: the learner makes the next version. gathering: the first
    tasks wait for more actors. began: start of this life. moved_at: when anything moved last. complained_at: when a person was
    last told that nothing moves. probe_at: time from which on silent connections are looked at again.
    back_by: time until which actors of an earlier life may come back.
    """

    def __init__(self, plan: Plan, goal: Goal, bounds: Bounds, found: Recovered, now: float) -> None:
        self.plan, self.goal, self.bounds = plan, goal, bounds
        self.epoch, self.version, self.since = found.epoch + 1, found.version, found.version
        self.steps, self.drawn, self.kept = found.steps, found.drawn, found.kept
        self.reached = not found.folded and goal.reached(found.version, found.steps)  # and the last life could not say so
        self.stepping = self.ended = self.paused = False
        self.gathering = bounds.gather > 0
        self.now = self.began = self.moved_at = self.complained_at = now
        self.back_by = now + bounds.back
        self.probe_at = now
        self.farewell = Farewell()
        self.roster = Roster(bounds.ahead, bounds.most)
        self.seats = Seats(0, self.roster.contributors.seats)
        self.ledger = Ledger(verdicts=Verdicts(self.roster.most))
        if found.folded:
            self.ledger.folded[found.version] = found.folded
        for promise in found.promises:
            self.ledger.promise(promise, now)

    def limit(self, kind: str) -> float:
        """Return the longest time of one attempt at a task of this kind, in seconds; 0: no limit. If the lease follows what
        tasks took, it is ten times the median of the last 99 of the kind, and at least `floor`; `first` before three are in."""
        took = self.ledger.took.get(kind, ())
        if self.bounds.lease >= 0:
            return self.bounds.lease
        return max(self.bounds.floor, 10 * median(took)) if len(took) >= 3 else self.bounds.first

    def starves(self) -> bool:
        """Return whether the learner makes no step and holds none for the next; it may hold contributions for later ones."""
        return not self.stepping and self.version not in self.ledger.coming

    def say(self, actor: Actor, message: Message) -> Send:
        if actor.session in self.roster.actors:
            self.roster.say(actor, self.now)
        return Send(actor.peer, Envelope(actor.session, self.epoch, message))

    def refusal(self, peer: bytes, session: bytes, reason: str, *, final: bool) -> Send:
        return Send(peer, Envelope(session, self.epoch, Refused(reason, final)))

    def end(self, reason: str, *, failed: bool, pause: bool = False) -> Iterator[Effect]:
        """End the run, if it has not ended: every actor that is here is told, except in a pause."""
        if not self.ended and pause:
            self.ended = self.paused = True
            yield Finish(reason, failed)
        if not self.ended:
            self.ended = True
            for actor in self.roster.actors.values():
                yield self.say(actor, Stop(reason))
            self.farewell.begin(Stop(reason), self.epoch, self.roster.actors, self.now)
            yield Finish(reason, failed)

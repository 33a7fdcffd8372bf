"""The facts of a run that core, contributions, desk, membership and patience share.

The one idea: each of these modules is handed the facts and not the core, so they import each other in one direction only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.events import Effect, Finish, Send
from shoal.coordinator.deciding.farewell import Farewell
from shoal.coordinator.deciding.ledger import Ledger
from shoal.coordinator.deciding.plans import Plan, Seats
from shoal.coordinator.deciding.roster import Actor, Roster
from shoal.protocol.messages import Envelope, Message, Refused, Stop


@dataclass(slots=True)
class Facts:
    """The facts. Times are in seconds of a clock that never goes back.

    epoch: number of this life of the coordinator. version: newest version of the weights. since: version whose step last
    changed the weights. steps: environment steps folded in. drawn: tasks that the plan has given out. kept: newest version in
    a snapshot, -1 if none. reached: the goal is reached. stepping: the learner makes the next version. gathering: the first
    tasks wait for more actors. began: start of this life. moved_at: when anything moved last. complained_at: when a person was
    last told that nothing moves. back_by: time until which actors of an earlier life may come back.
    """

    plan: Plan
    goal: Goal
    bounds: Bounds
    roster: Roster
    ledger: Ledger
    epoch: int
    version: int
    steps: int
    drawn: int
    kept: int
    now: float
    reached: bool = False
    stepping: bool = False
    ended: bool = False
    farewell: Farewell = field(default_factory=Farewell)
    since: int = field(init=False)
    began: float = field(init=False)
    moved_at: float = field(init=False)
    complained_at: float = field(init=False)
    back_by: float = field(init=False)
    gathering: bool = field(init=False)
    seats: Seats = field(init=False)

    def __post_init__(self) -> None:
        self.since = self.version
        self.began = self.moved_at = self.complained_at = self.now
        self.back_by = self.now + self.bounds.back
        self.gathering = self.bounds.gather > 0
        self.seats = Seats(0, self.roster.seats)

    def starves(self) -> bool:
        """Return whether the learner makes no step and holds none for the next; it may hold contributions for later ones."""
        return not self.stepping and self.version not in self.ledger.coming

    def say(self, actor: Actor, message: Message) -> Send:
        if actor.session in self.roster.actors:
            self.roster.say(actor, self.now)
        return Send(actor.peer, Envelope(actor.session, self.epoch, message))

    def refusal(self, peer: bytes, session: bytes, reason: str, *, final: bool) -> Send:
        return Send(peer, Envelope(session, self.epoch, Refused(reason, final)))

    def end(self, reason: str, *, failed: bool) -> Iterator[Effect]:
        """End the run, if it has not ended: every actor that is here is told."""
        if not self.ended:
            self.ended = True
            for actor in self.roster.actors.values():
                yield self.say(actor, Stop(reason))
            self.farewell.begin(Stop(reason), self.epoch, self.roster.actors, self.now)
            yield Finish(reason, failed)

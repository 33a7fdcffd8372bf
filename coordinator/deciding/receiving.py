"""Contributions on their way in: the order in which they are fetched, and their progress.

The one idea: an announced contribution costs a few hundred bytes, so any number may wait; the bytes fetched and not yet folded
in have a bound, so that a cohort of ten thousand costs no more memory than a cohort of ten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from shoal.protocol.fetching import Fetch, Way
from shoal.protocol.messages import Chunk, Contribute, TaskName, Want

LOOK = 0.25  # seconds between two looks for pieces that do not come
LARGE = 64  # most contributions larger than the room that are fetched at a time
State: TypeAlias = Literal["announced", "waiting", "fetching", "here", "folding", "gone"]


@dataclass(slots=True, eq=False)
class Delivery:
    """A contribution on its way from an actor's session to the learner.

    state: announced (the core has not judged it), waiting (for its turn to be fetched), fetching, here (with all its pieces),
    folding (with the learner) or gone. arrays: the shell's arrays of the contribution, never looked into here; None if there
    are none. large: the arrays are larger than the room. lag: versions from made_from to the one that the contribution builds
    on. moved_at: time when fetching began or the last piece came.
    """

    session: bytes
    message: Contribute
    arrays: Any = None
    state: State = "announced"
    large: bool = False
    lag: int = 0
    fetch: Fetch | None = None
    moved_at: float = 0.0

    @property
    def task(self) -> TaskName:
        return self.message.task

    @property
    def pulled(self) -> bool:
        """Return whether the delivery is or was fetched, or waits to be."""
        return self.fetch is not None or self.state == "waiting"

    @property
    def what(self) -> tuple[int, ...]:
        return (*self.message.task, self.message.attempt)

    def answers(self, session: bytes, message: Contribute) -> bool:
        """Return whether this message is from the same session and about the same attempt."""
        return self.session == session and self.message.attempt == message.attempt and self.message.task == message.task


class Receiving:
    """The deliveries that wait or are fetched. room: most bytes that may be fetched and not yet folded in at a time; larger
    deliveries lie elsewhere, at most LARGE at a time. Times are in seconds of a clock that never goes back."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = self.large = 0
        self._waiting: OrderedDict[Delivery, None] = OrderedDict()
        self._fetching: dict[bytes, Delivery] = {}  # by session: one at a time, because a session has one way
        self._ways: dict[bytes, Way] = {}
        self._due: dict[bytes, None] = {}  # sessions that may be asked for more
        self._news = False  # a waiting delivery may have its turn since the last look
        self._looked_at = 0.0

    @property
    def idle(self) -> bool:
        """Return whether no delivery waits or is fetched."""
        return not (self._waiting or self._fetching)

    def pull(self, delivery: Delivery) -> None:
        """Queue a delivery, to be fetched when there is room."""
        delivery.state = "waiting"
        delivery.large = delivery.message.nbytes > self.room
        self._waiting[delivery] = None
        self._news = True

    def drop(self, delivery: Delivery) -> None:
        """Drop a delivery that is folded in or not wanted any more; one that was never pulled changes nothing."""
        if delivery in self._waiting:
            del self._waiting[delivery]
            self._news = True
        if delivery.fetch is not None:
            self._news = True
            self._count(delivery, -1)
            self._next(delivery)

    def gone(self, session: bytes) -> None:
        """Forget a session that is gone."""
        self._ways.pop(session, None)
        self._due.pop(session, None)

    def cut(self, session: bytes) -> None:
        """Ask again for the pieces under way from a session whose connection was replaced: they are lost."""
        if (delivery := self._fetching.get(session)) and delivery.fetch:
            delivery.fetch.cut()
            self._due[session] = None

    def came(self, session: bytes, chunk: Chunk, now: float) -> Delivery | None:
        """Take in a piece. Return its delivery, or None if the piece was not asked for."""
        delivery = self._fetching.get(session)
        if delivery is None or delivery.fetch is None or delivery.what != chunk.what:
            return None
        if not delivery.fetch.arrived(chunk.first, chunk.last, now):
            return None
        delivery.moved_at = now
        if delivery.fetch.left:
            self._due[session] = None
        else:
            delivery.state = "here"
            self._next(delivery)
        return delivery

    def ask(self, now: float, starved: bool) -> tuple[list[tuple[bytes, Want]], list[bytes]]:
        """Return the Wants with their sessions, and the sessions that did not answer on the line they were last asked on.
        starved: the learner has no contribution to fold before another has come."""
        self._begin(now, starved and not self._fetching)
        if now - self._looked_at >= LOOK:
            self._looked_at = now
            self._due.update(dict.fromkeys(self._fetching))
        due, self._due = self._due, {}
        share = self.room // max(1, len(self._fetching))  # pieces under way lie in memory too, and are counted nowhere else
        wants: list[tuple[bytes, Want]] = []
        in_vain: list[bytes] = []
        for session in due:
            if (delivery := self._fetching.get(session)) and delivery.fetch:
                given_up = delivery.fetch.given_up
                wants += [(session, Want(delivery.what, first, last)) for first, last in delivery.fetch.ask(now, share)]
                if delivery.fetch.given_up > given_up:
                    in_vain.append(session)
        return wants, in_vain

    def stalled(self, since: float) -> list[TaskName]:
        """Return the tasks whose arrays were asked for and of which no piece has come since `since`."""
        return [delivery.task for delivery in self._fetching.values() if delivery.moved_at < since]

    def _begin(self, now: float, one: bool) -> None:
        """Begin to fetch waiting deliveries, in order, while there is room; with `one`, one of them in any case."""
        if not (self._waiting and (one or (self._news and self.held < self.room))):
            return
        self._news = False
        for delivery in list(self._waiting):
            if not (one or self._fits(delivery)):
                return
            one = False
            if delivery.session not in self._fetching:
                del self._waiting[delivery]
                delivery.fetch = Fetch(delivery.message.nbytes, self._ways.setdefault(delivery.session, Way()))
                delivery.state, delivery.moved_at = "fetching", now
                self._count(delivery, 1)
                self._fetching[delivery.session] = delivery
                self._due[delivery.session] = None

    def _fits(self, delivery: Delivery) -> bool:
        return self.large < LARGE if delivery.large else self.held + delivery.message.nbytes <= self.room

    def _count(self, delivery: Delivery, sign: int) -> None:
        if delivery.large:
            self.large += sign
        else:
            self.held += sign * delivery.message.nbytes

    def _next(self, delivery: Delivery) -> None:
        """Free the way of the delivery's session for its next delivery: no piece of this one is to come."""
        if self._fetching.get(delivery.session) is delivery:
            del self._fetching[delivery.session]
            self._news = True

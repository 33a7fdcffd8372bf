"""Contributions on their way in: which of them are fetched now, and how far they are.

The one idea: a contribution that is only announced costs a few hundred bytes, so any number may wait; what is fetched and not
yet folded in has a bound, so that a cohort of ten thousand costs no more memory than one of ten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from shoal.protocol.fetching import Fetch, Way
from shoal.protocol.messages import Chunk, Contribute, TaskName, Want

LOOK = 0.25  # seconds between two looks at what does not come
LARGE = 64  # contributions too large for the room that are fetched at a time
State: TypeAlias = Literal["announced", "waiting", "fetching", "here", "folding", "gone"]


@dataclass(slots=True, eq=False)
class Delivery:
    """One contribution on its way from an actor's session to the learner.

    state: announced (the core has not judged it), waiting (for its turn to be fetched), fetching, here (all of it is), folding
    (with the learner) or gone. arrays: what the shell has of its arrays, which nothing here looks into. large: it is too large
    for the room in memory. lag: versions between made_from and the one that it is folded into. moved_at: when fetching began,
    or a piece came last.
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
        """Is it fetched, was it, or does it wait for that?"""
        return self.fetch is not None or self.state == "waiting"

    @property
    def what(self) -> tuple[int, ...]:
        return (*self.message.task, self.message.attempt)

    def answers(self, session: bytes, message: Contribute) -> bool:
        """Is this message of the same session about the same attempt?"""
        return self.session == session and self.message.attempt == message.attempt and self.message.task == message.task


class Receiving:
    """room: bytes that may be fetched, and wait to be folded in, at a time; what is larger than that goes somewhere else, and
    of it only what is under way counts. Times are in seconds of a clock that never goes back."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = self.large = 0
        self._waiting: OrderedDict[Delivery, None] = OrderedDict()
        self._fetching: dict[bytes, Delivery] = {}  # one at a time from a session: they have one way
        self._ways: dict[bytes, Way] = {}
        self._due: dict[bytes, None] = {}  # sessions that may be asked for more
        self._news = False  # may somebody who waits have a turn since we looked?
        self._looked_at = 0.0

    @property
    def idle(self) -> bool:
        """Is there nothing to ask for?"""
        return not (self._waiting or self._fetching)

    def pull(self, delivery: Delivery) -> None:
        """It is wanted: fetch it when there is room."""
        delivery.state = "waiting"
        delivery.large = delivery.message.nbytes > self.room
        self._waiting[delivery] = None
        self._news = True

    def drop(self, delivery: Delivery) -> None:
        """It is folded in, or not wanted any more; or was never pulled."""
        if delivery in self._waiting:
            del self._waiting[delivery]
            self._news = True
        if delivery.fetch is not None:
            self._news = True
            self._count(delivery, -1)
            self._next(delivery)

    def gone(self, session: bytes) -> None:
        """It will not come back."""
        self._ways.pop(session, None)
        self._due.pop(session, None)

    def cut(self, session: bytes) -> None:
        """Its connection is another one: what was under way is lost."""
        if (delivery := self._fetching.get(session)) and delivery.fetch:
            delivery.fetch.cut()
            self._due[session] = None

    def came(self, session: bytes, chunk: Chunk, now: float) -> Delivery | None:
        """A piece came. Of which delivery it is, if it was asked for."""
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
        """What to ask which session for; and the sessions that were asked in vain by the way that was taken last. starved:
        nothing that is here can be folded in before something else has come."""
        self._begin(now, starved and not self._fetching)
        if now - self._looked_at >= LOOK:
            self._looked_at = now
            self._due.update(dict.fromkeys(self._fetching))
        due, self._due = self._due, {}
        share = self.room // max(1, len(self._fetching))  # what is under way lies in memory too, and nowhere else is it counted
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
        """Of what nothing has come since then, though it was asked for."""
        return [delivery.task for delivery in self._fetching.values() if delivery.moved_at < since]

    def _begin(self, now: float, one: bool) -> None:
        """Those that wait have their turn, in order, as far as there is room; `one` of them in any case."""
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
        """Nothing of this one is to come: the way is free for another of the same session."""
        if self._fetching.get(delivery.session) is delivery:
            del self._fetching[delivery.session]
            self._news = True

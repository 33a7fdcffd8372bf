"""The actors that are here: their tasks, their versions, their silence.

The one idea: an index that is kept in order answers each question that the core asks after every event (which actors are idle,
which are behind, which has been silent longest), so that an answer costs the same at ten actors and at ten thousand.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from shoal.coordinator.deciding.plans import Seat
from shoal.protocol.messages import TaskName
from shoal.protocol.work import Task, Words

DROPPED = 8  # tasks taken back from an actor that are remembered: its worker may be at any of so many


class Pending(NamedTuple):
    """A task that waits to be given out. given: times that this life of the coordinator gave it out. faults: times that it
    failed, or was blamed for a death. alone: it may end its actor's process, so its actor gets no other task beside it."""

    task: Task
    given: int = 0
    faults: int = 0
    alone: bool = False


@dataclass(slots=True)
class Actor:
    """A session of an actor, as the coordinator sees it. user: the public key that the actor proved, without which
    nobody can speak for it; "" if the run asks for none. sent: newest version that went to the actor, -1 if none. under_way:
    `sent` has not arrived. progress: highest progress in the actor's Beats."""

    session: bytes
    peer: bytes
    name: str
    number: int
    user: str = ""
    sent: int = -1
    under_way: bool = False
    held: int = -1  # newest version that the actor said has arrived, -1 if none
    tasks: set[TaskName] = field(default_factory=set)
    parked: deque[Pending] = field(default_factory=deque)  # tasks that wait for room here: sticky, or to be tried alone
    alone: TaskName | None = None  # task that is tried alone here, or waits for that
    runs: tuple[int, ...] = ()  # (version, index, attempt) of the task that its last Beat named, unless it came since
    progress: int = 0
    capacity: int = 0  # tasks that the actor may hold
    free_at: float = -math.inf  # time when a result of the actor came last: no task that waits here began before
    dropped: tuple[tuple[int, ...], ...] = ()  # (version, index, attempt) of the last tasks taken back, without a result so far
    pace: float = -1.0  # seconds that a task takes the actor, a running mean; -1 before the first
    offers: tuple[str, ...] = ()  # as in Hello, as are the next three
    cores: int = 0
    memory: int = 0
    gpus: tuple[str, ...] = ()
    stuck: bool = False  # a lease of the actor ran out, and its worker has said nothing since
    mute: bool = False  # nothing comes over the actor's connection, not even what its sockets say without Python
    hushed_at: float = -math.inf  # time when a person was last told so
    away: bool = False  # the actor's connection was lost, and the actor may come back over another
    lost_at: float = 0.0  # time when the connection of an actor without a place was lost
    greeting: int = 0  # number of the Hello that gave the actor its place
    resumed: bool = False  # with that Hello the actor came back to a place that it had
    spoke: bool = False  # the actor has said more since: that Hello need not be answered again
    strikes: int = 0  # results of the actor in a row that were refused or failed
    barred: int = 0  # times in quarantine since the actor's last accepted contribution
    barred_until: float = 0.0  # time when the quarantine ends; 0.0 outside quarantine
    host: str = ""  # the machine and its boot, as the actor says
    pid: int = 0  # its process id there
    follows: bool = False  # it wants the weights and does no task; its number is -1
    evaluates: bool = False  # it does evaluations alone, one at a time; its number is -1
    told: Words = field(default_factory=dict)  # as in its last Beat
    briefed: set[int] = field(default_factory=set)  # clients of which it was told a task, with the brief or word of none

    @property
    def idles(self) -> bool:
        """Return whether no task can be given to the actor now."""
        return self.mute or self.unfit

    @property
    def at_work(self) -> bool:
        """Return whether the actor has one task alone, and the weights for it: it has no use for newer ones before the next."""
        return len(self.tasks) == 1 and all(version <= self.held for version, _ in self.tasks)

    @property
    def unfit(self) -> bool:
        """Return whether other actors play the actor's clients. A link that is cut for some seconds is no reason."""
        return self.stuck or self.away or self.barred_until > 0 or self.follows


class Roster:
    """The actors that are here now, each with room for `ahead` tasks at first, and for `most` if they are short. Actors that
    follow the weights, and evaluators, are among `actors`, and do not count: `len` is the number of those that train."""

    def __init__(self, ahead: int, most: int = 0) -> None:
        self.ahead, self.most = ahead, max(ahead, most)
        self.actors: dict[bytes, Actor] = {}
        self.followers = 0  # actors that follow the weights alone
        self.evaluators: dict[bytes, Actor] = {}  # actors that do evaluations alone
        self.room = 0  # further tasks that all actors together can take, without evaluators
        self.homes: dict[int, bytes] = {}  # client -> the actor that plays it
        self._idle: list[dict[bytes, None]] = [{} for _ in range(self.most + 1)]  # sessions with room, by tasks held
        self.lives: dict[int, int] = {}  # number -> sessions that have had it
        self.behind: dict[bytes, None] = {}  # sessions that want newer weights than those sent to them
        self.later: dict[bytes, None] = {}  # sessions that will want them once their task is done (Bounds.light)
        self._heard: OrderedDict[bytes, float] = OrderedDict()  # longest silence first
        self._said: OrderedDict[bytes, float] = OrderedDict()
        self._free: list[int] = []  # numbers that actors gave back, a heap
        self._by_peer: dict[bytes, bytes] = {}
        self._barred: dict[bytes, None] = {}  # sessions in quarantine
        self.mute: dict[bytes, None] = {}  # sessions over whose connections nothing comes

    def __len__(self) -> int:
        return len(self.actors) - self.followers - len(self.evaluators)

    def join(
        self,
        session: bytes,
        peer: bytes,
        name: str,
        now: float,
        user: str = "",
        follows: bool = False,
        evaluates: bool = False,
    ) -> Actor:
        """Add the actor of a new session. Its number is the lowest that is free; a follower and an evaluator take none, because
        environments are drawn by it."""
        beside = follows or evaluates
        number = -1 if beside else heapq.heappop(self._free) if self._free else len(self)
        actor = self.actors[session] = Actor(session, peer, name, number, user, follows=follows)
        self.followers += follows
        if evaluates and not follows:
            actor.evaluates, self.evaluators[session] = True, actor
        self._by_peer[peer] = session
        self.lives[number] = self.lives.get(number, 0) + 1
        self.behind[session] = None
        self.allow(actor, 0 if follows else self.ahead)
        self.hear(actor, now)
        self.say(actor, now)
        if self.homes:
            self._share()
        return actor

    def part(self, actor: Actor) -> None:
        """Remove an actor. The caller hands on its tasks."""
        del self.actors[actor.session], self._by_peer[actor.peer]
        self.allow(actor, 0)
        self._wants_none(actor)
        del self._heard[actor.session]
        self._said.pop(actor.session, None)
        self._barred.pop(actor.session, None)
        self.mute.pop(actor.session, None)
        self.followers -= actor.follows
        self.evaluators.pop(actor.session, None)
        if actor.number >= 0:
            heapq.heappush(self._free, actor.number)

    def leave(self, actor: Actor) -> None:
        """Mark an actor as away: its connection is lost. The actor keeps its place and tasks until the bound on silence."""
        actor.away = True
        self.allow(actor, 0)
        self._wants_none(actor)
        self._said.pop(actor.session, None)

    def hush(self, actor: Actor) -> None:
        """Mark an actor as mute: it gets no tasks until it is heard."""
        actor.mute = True
        self.mute[actor.session] = None
        self.allow(actor, 0)

    def unhush(self, actor: Actor) -> None:
        """Let a mute actor have tasks again, and clients that were given out meanwhile."""
        actor.mute = False
        del self.mute[actor.session]
        if not actor.idles:
            self.allow(actor, self.ahead)
        if self.homes:
            self._share()

    def resume(self, actor: Actor, peer: bytes, held: int, newest: int, now: float) -> None:
        """Bring an actor back, maybe over another connection; the weights under way to it are lost. held: version that the
        actor says it has, -1 if none."""
        del self._by_peer[actor.peer]
        self._by_peer[peer] = actor.session
        actor.peer, actor.away, actor.under_way = peer, False, False
        if actor.mute:
            self.unhush(actor)
        actor.resumed, actor.spoke = True, False
        actor.sent = actor.held = held if -1 <= held <= actor.sent else -1
        if actor.sent < newest:
            self.behind[actor.session] = None
        self.allow(actor, 0 if actor.idles else self.ahead)
        self.hear(actor, now)
        self.say(actor, now)
        if self.homes:
            self._share()

    def at(self, peer: bytes) -> Actor | None:
        session = self._by_peer.get(peer)
        return None if session is None else self.actors[session]

    # Work

    def with_room(self) -> Iterator[Actor]:
        """Return the actors with room: fewest tasks first, among equals the actor that has waited longest."""
        return (self.actors[session] for sessions in self._idle for session in sessions)

    def evaluator(self) -> Actor | None:
        """Return the evaluator that is to do the next evaluation: of those that can be given tasks the least busy; None if
        there is none."""
        able = (actor for actor in self.evaluators.values() if not actor.idles)
        return min(able, key=lambda actor: len(actor.tasks) + len(actor.parked), default=None)

    def evaluations(self) -> int | None:
        """Return the number of evaluations that evaluators can begin now; None if no evaluator can be given tasks."""
        able = [actor for actor in self.evaluators.values() if not actor.idles]
        return sum(not actor.tasks and not actor.parked for actor in able) if able else None

    def seats(self) -> Iterator[Seat]:
        """Return a Seat for each actor with room, in the same order."""
        rows = ((one, len(one.tasks)) for one in self.with_room())
        return (Seat(one.number, one.capacity - held, held=held, user=one.user) for one, held in rows)

    def burden(self, actor: Actor, task: TaskName) -> None:
        self._leave(actor)
        actor.tasks.add(task)
        self._enter(actor)
        self._works(actor)

    def unburden(self, actor: Actor, task: TaskName) -> None:
        if task in actor.tasks:
            self._leave(actor)
            actor.tasks.discard(task)
            self._enter(actor)
            self._works(actor)

    def allow(self, actor: Actor, capacity: int) -> None:
        """Let an actor hold `capacity` tasks from now on, and one at most while a task is tried alone there; 0: none but those
        that it has. It may be above `most`, for an actor whose tasks all wait for a version that lacks one. An evaluator
        holds one at most."""
        self._idle.extend({} for _ in range(capacity - len(self._idle)))
        self._leave(actor)
        actor.capacity = min(capacity, 1) if actor.alone or actor.evaluates else capacity
        self._enter(actor)

    def bar(self, actor: Actor, until: float) -> None:
        """Put an actor in quarantine until the time `until`: it gets no tasks."""
        actor.barred_until = until
        self._barred[actor.session] = None
        self.allow(actor, 0)

    def unbar(self, now: float) -> list[Actor]:
        """Free and return the actors whose quarantine is over, or all in quarantine if no other actor can have tasks."""
        if not self._barred:
            return []
        alone = all(actor.idles or actor.evaluates for actor in self.actors.values())
        freed = [actor for actor in map(self.actors.__getitem__, self._barred) if alone or actor.barred_until <= now]
        for actor in freed:
            actor.barred_until = 0.0
            del self._barred[actor.session]
            self.allow(actor, 0 if actor.idles else self.ahead)
        if freed and self.homes:
            self._share()
        return freed

    def alone(self, actor: Actor) -> bool:
        """Return whether no other actor can be given this actor's tasks."""
        return all(one is actor or one.idles or one.evaluates for one in self.actors.values())

    def _leave(self, actor: Actor) -> None:
        load = len(actor.tasks)
        if load < actor.capacity and not actor.evaluates:
            del self._idle[load][actor.session]
            self.room -= actor.capacity - load

    def _enter(self, actor: Actor) -> None:
        load = len(actor.tasks)
        if load < actor.capacity and not actor.evaluates:
            self._idle[load][actor.session] = None
            self.room += actor.capacity - load

    def home(self, client: int) -> Actor:
        """Return the actor that plays this client: the one with the fewest clients if the last is unfit or gone."""
        session = self.homes.get(client)
        if session not in self.actors or self.actors[session].unfit:
            session = self.homes[client] = self._fewest_clients()
        return self.actors[session]

    def _share(self) -> None:
        """Move clients from the actors with most to the actors with fewest, until none has two more than another: a newcomer
        gets its share, and an actor that comes back with all its clients leaves a share to the actors that came meanwhile."""
        held: dict[bytes, list[int]] = {session: [] for session, actor in self.actors.items() if actor.number >= 0}
        for client, session in self.homes.items():
            if session in held:
                held[session].append(client)
        while (
            held
            and len(richest := max(held.values(), key=len))
            > len(held[poorest := min(held, key=lambda one: len(held[one]))]) + 1
        ):
            held[poorest].append(client := richest.pop())
            self.homes[client] = poorest

    def _fewest_clients(self) -> bytes:
        doing = {session: actor for session, actor in self.actors.items() if actor.number >= 0}
        held = {session: 0 for session, actor in doing.items() if not actor.idles} or dict.fromkeys(doing, 0)
        for session in self.homes.values():
            if session in held:
                held[session] += 1
        return min(held, key=lambda session: (held[session], self.actors[session].number))

    # Weights

    def fall_behind(self) -> None:
        """Mark as behind every actor that has no weights under way and is not away: there are newer weights."""
        for session, actor in self.actors.items():
            if not (actor.under_way or actor.away):
                self.behind[session] = None

    def arrived(self, actor: Actor, version: int, newest: int) -> None:
        """Record that weights reached an actor. The actor is behind if they are older than `newest`."""
        if actor.under_way and version == actor.sent:
            actor.under_way, actor.held = False, version
            if version < newest:
                self.behind[actor.session] = None

    def outdate(self, actor: Actor, version: int) -> None:
        """Mark an actor as behind if this version was under way to it: the version can no longer be had."""
        if actor.under_way and actor.sent == version and not actor.away:
            actor.under_way, actor.sent = False, actor.held
            self.behind[actor.session] = None

    def _works(self, actor: Actor) -> None:
        """Mark an actor as behind if newer weights waited for what it works on to change, as it does now."""
        if actor.session in self.later:
            del self.later[actor.session]
            if not actor.under_way:  # since it came back; the Have of those will show what it lacks
                self.behind[actor.session] = None

    def _wants_none(self, actor: Actor) -> None:
        self.behind.pop(actor.session, None)
        self.later.pop(actor.session, None)

    def refresh(self, version: int, light: bool = False) -> Iterator[Actor]:
        """Return the actors to send `version` to now, and mark it as under way to each. light: as in Bounds."""
        behind, self.behind = self.behind, {}
        for session in behind:
            actor = self.actors[session]
            if light and actor.at_work:
                self.later[session] = None
            elif actor.sent < version:
                actor.under_way, actor.sent = True, version
                yield actor

    # Silence

    def hear(self, actor: Actor, now: float) -> None:
        self._heard[actor.session] = now
        self._heard.move_to_end(actor.session)

    def say(self, actor: Actor, now: float) -> None:
        if actor.away:
            return
        self._said[actor.session] = now
        self._said.move_to_end(actor.session)

    def silent(self, since: float) -> list[Actor]:
        """Return the actors of which nothing was heard since `since`, the longest silence first."""
        heard = takewhile(lambda item: item[1] <= since, self._heard.items())
        return [self.actors[session] for session, _ in heard]

    def by_silence(self) -> Iterator[Actor]:
        """Return all actors, the longest silence first."""
        return map(self.actors.__getitem__, self._heard)

    def unspoken(self, since: float) -> Actor | None:
        """Return the actor longest without a word from here, if nothing was said to it since `since`; else None."""
        session = next(iter(self._said), None)
        return self.actors[session] if session is not None and self._said[session] <= since else None

    def heard_at(self, actor: Actor) -> float:
        return self._heard[actor.session]

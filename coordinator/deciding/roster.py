"""The actors that are here: their connections, their versions, their silence. Who of them can be given a task is known among
their like: contributors.py, evaluators.py.

The one idea: an index that is kept in order answers each question that the core asks after every event (which actors are
behind, which has been silent longest), so that an answer costs the same at ten actors and at ten thousand.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import takewhile

from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.contributors import Contributors
from shoal.coordinator.deciding.evaluators import Evaluators
from shoal.protocol.messages import TaskName


class Roster:
    """The actors that are here now. An actor that contributes has room for `ahead` tasks at first, and for `most` if they are
    short. `len` is the number of the actors that contribute: evaluators, and followers of the weights, do not count."""

    def __init__(self, ahead: int, most: int = 0) -> None:
        self.ahead, self.most = ahead, max(ahead, most)
        self.actors: dict[bytes, Actor] = {}
        self.contributors = Contributors(self.most)
        self.evaluators = Evaluators()
        self.followers = 0  # actors that follow the weights alone
        self.behind: dict[bytes, None] = {}  # sessions that want newer weights than those sent to them
        self.later: dict[bytes, None] = {}  # sessions that will want them once their task is done (Bounds.light)
        self._heard: OrderedDict[bytes, float] = OrderedDict()  # longest silence first
        self._said: OrderedDict[bytes, float] = OrderedDict()
        self._by_peer: dict[bytes, bytes] = {}
        self._barred: dict[bytes, None] = {}  # sessions in quarantine
        self.mute: dict[bytes, None] = {}  # sessions over whose connections nothing comes

    def __len__(self) -> int:
        return len(self.contributors)

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
        """Add the actor of a new session."""
        actor = self.actors[session] = Actor(session, peer, name, user, follows=follows, evaluates=evaluates and not follows)
        self._by_peer[peer] = session
        self.behind[session] = None
        if follows:
            self.followers += 1
        else:
            self._among(actor).join(actor)
            self.allow(actor, self.ahead)
        self.hear(actor, now)
        self.say(actor, now)
        self.contributors.share()
        return actor

    def part(self, actor: Actor) -> None:
        """Remove an actor. The caller hands on its tasks."""
        del self.actors[actor.session], self._by_peer[actor.peer]
        if actor.follows:
            self.followers -= 1
        else:
            self._among(actor).part(actor)
        self._wants_none(actor)
        del self._heard[actor.session]
        self._said.pop(actor.session, None)
        self._barred.pop(actor.session, None)
        self.mute.pop(actor.session, None)

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
        self.contributors.share()

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
        self.contributors.share()

    def at(self, peer: bytes) -> Actor | None:
        session = self._by_peer.get(peer)
        return None if session is None else self.actors[session]

    # Work

    def burden(self, actor: Actor, task: TaskName) -> None:
        self._among(actor).burden(actor, task)
        self._works(actor)

    def unburden(self, actor: Actor, task: TaskName) -> None:
        if task in actor.tasks:
            self._among(actor).unburden(actor, task)
            self._works(actor)

    def allow(self, actor: Actor, capacity: int) -> None:
        """Let an actor hold `capacity` tasks from now on, as far as its kind of actor may; 0: none but those that it has."""
        self._among(actor).allow(actor, capacity)

    def _among(self, actor: Actor) -> Contributors | Evaluators:
        """Return the index that the actor is in; for a follower, which never has a task, one that it does not change."""
        return self.evaluators if actor.evaluates else self.contributors

    def bar(self, actor: Actor, until: float) -> None:
        """Put an actor in quarantine until the time `until`: it gets no tasks."""
        actor.barred_until = until
        self._barred[actor.session] = None
        self.allow(actor, 0)

    def unbar(self, now: float) -> list[Actor]:
        """Free and return the actors whose quarantine is over, or all in quarantine if no actor that contributes can have
        tasks."""
        if not self._barred:
            return []
        alone = all(actor.idles for actor in self.contributors.actors.values())
        freed = [actor for actor in map(self.actors.__getitem__, self._barred) if alone or actor.barred_until <= now]
        for actor in freed:
            actor.barred_until = 0.0
            del self._barred[actor.session]
            self.allow(actor, 0 if actor.idles else self.ahead)
        if freed:
            self.contributors.share()
        return freed

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

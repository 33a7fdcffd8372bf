"""The actors that contribute: their numbers, their room for tasks, and the clients that each plays.

The one idea: the actors with room lie in an index by the number of tasks that they hold, so the least busy actor is found at
the same cost among ten actors and among ten thousand.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.plans import Seat
from shoal.protocol.messages import TaskName


class Contributors:
    """The actors that are here and contribute. room: further tasks that all of them together can take. homes: client -> session
    of the actor that plays it. lives: number -> sessions that have had it. most: tasks that an actor may hold, as a rule."""

    def __init__(self, most: int) -> None:
        self.actors: dict[bytes, Actor] = {}
        self.room = 0
        self.homes: dict[int, bytes] = {}
        self.lives: dict[int, int] = {}
        self._idle: list[dict[bytes, None]] = [{} for _ in range(most + 1)]  # sessions with room, by tasks held
        self._free: list[int] = []  # numbers that actors gave back, a heap

    def __len__(self) -> int:
        return len(self.actors)

    def join(self, actor: Actor) -> None:
        """Add an actor. Its number is the lowest that is free, because environments are drawn by it."""
        actor.number = heapq.heappop(self._free) if self._free else len(self)
        self.actors[actor.session] = actor
        self.lives[actor.number] = self.lives.get(actor.number, 0) + 1

    def part(self, actor: Actor) -> None:
        """Remove an actor, and free its number."""
        self.allow(actor, 0)
        del self.actors[actor.session]
        heapq.heappush(self._free, actor.number)

    def alone(self, actor: Actor) -> bool:
        """Return whether no actor but this one can be given tasks."""
        return all(one is actor or one.idles for one in self.actors.values())

    # Work

    def with_room(self) -> Iterator[Actor]:
        """Return the actors with room: fewest tasks first, among equals the actor that has waited longest."""
        return (self.actors[session] for sessions in self._idle for session in sessions)

    def seats(self) -> Iterator[Seat]:
        """Return a Seat for each actor with room, in the same order."""
        rows = ((one, len(one.tasks)) for one in self.with_room())
        return (Seat(one.number, one.capacity - held, held=held, user=one.user) for one, held in rows)

    def allow(self, actor: Actor, capacity: int) -> None:
        """Let an actor hold `capacity` tasks from now on, and one at most while a task is tried alone there; 0: none but those
        that it has. It may be above `most`, for an actor whose tasks all wait for a version that lacks one."""
        self._idle.extend({} for _ in range(capacity - len(self._idle)))
        self._leave(actor)
        actor.capacity = min(capacity, 1) if actor.alone else capacity
        self._enter(actor)

    def burden(self, actor: Actor, task: TaskName) -> None:
        self._leave(actor)
        actor.tasks.add(task)
        self._enter(actor)

    def unburden(self, actor: Actor, task: TaskName) -> None:
        self._leave(actor)
        actor.tasks.discard(task)
        self._enter(actor)

    def _leave(self, actor: Actor) -> None:
        load = len(actor.tasks)
        if load < actor.capacity:
            del self._idle[load][actor.session]
            self.room -= actor.capacity - load

    def _enter(self, actor: Actor) -> None:
        load = len(actor.tasks)
        if load < actor.capacity:
            self._idle[load][actor.session] = None
            self.room += actor.capacity - load

    # Clients

    def home(self, client: int) -> Actor:
        """Return the actor that plays this client: the one with the fewest clients if the last is unfit or gone."""
        session = self.homes.get(client)
        if session not in self.actors or self.actors[session].unfit:
            session = self.homes[client] = self._fewest_clients()
        return self.actors[session]

    def share(self) -> None:
        """Move clients from the actors with most to the actors with fewest, until none has two more than another: a newcomer
        gets its share, and an actor that comes back with all its clients leaves a share to the actors that came meanwhile."""
        if not (self.homes and self.actors):
            return
        held: dict[bytes, list[int]] = {session: [] for session in self.actors}
        for client, session in self.homes.items():
            if session in held:
                held[session].append(client)
        while len(richest := max(held.values(), key=len)) > len(held[poorest := min(held, key=lambda one: len(held[one]))]) + 1:
            held[poorest].append(client := richest.pop())
            self.homes[client] = poorest

    def _fewest_clients(self) -> bytes:
        able = [session for session, actor in self.actors.items() if not actor.idles]
        held = dict.fromkeys(able or self.actors, 0)
        for session in self.homes.values():
            if session in held:
                held[session] += 1
        return min(held, key=lambda session: (held[session], self.actors[session].number))

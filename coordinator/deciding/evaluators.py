"""The actors that do evaluations alone, one at a time.

The one idea: no evaluation waits at an evaluator. Evaluations wait in one queue (`Ledger.evaluations`), and an evaluator that
is idle takes the first, so a slow evaluator holds up no evaluation but its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from shoal.coordinator.deciding.actor import Actor
from shoal.protocol.messages import TaskName


class Evaluators:
    """The evaluators that are here. able: sessions of the evaluators that can be given evaluations. idle: of these evaluators
    those without a task, the one that has waited longest first."""

    def __init__(self) -> None:
        self.actors: dict[bytes, Actor] = {}
        self.able: set[bytes] = set()
        self.idle: dict[bytes, Actor] = {}

    @property
    def room(self) -> int | None:
        """Return the number of evaluations that evaluators can begin now; None if no evaluator can be given any."""
        return len(self.idle) if self.able else None

    def join(self, actor: Actor) -> None:
        self.actors[actor.session] = actor

    def part(self, actor: Actor) -> None:
        self.allow(actor, 0)
        del self.actors[actor.session]

    def tasks(self) -> Iterator[TaskName]:
        """Return the tasks that evaluators have."""
        return (name for actor in self.actors.values() for name in actor.tasks)

    def allow(self, actor: Actor, capacity: int) -> None:
        """Let an evaluator hold one task from now on if `capacity` is above 0, and else none but the one that it has."""
        actor.capacity = min(capacity, 1)
        self._index(actor)

    def burden(self, actor: Actor, task: TaskName) -> None:
        actor.tasks.add(task)
        self._index(actor)

    def unburden(self, actor: Actor, task: TaskName) -> None:
        actor.tasks.discard(task)
        self._index(actor)

    def _index(self, actor: Actor) -> None:
        if actor.capacity:
            self.able.add(actor.session)
        else:
            self.able.discard(actor.session)
        if actor.capacity and not actor.tasks:
            self.idle[actor.session] = actor
        else:
            self.idle.pop(actor.session, None)

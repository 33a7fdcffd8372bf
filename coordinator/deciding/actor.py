"""An actor as the coordinator sees it, and a task that waits for one.

The one idea: all that is known of a session stands in one value, and the indices over many actors stand elsewhere (roster.py,
contributors.py, evaluators.py).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

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
    user: str = ""
    number: int = -1  # its place among the actors that contribute; -1: it does not contribute
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
    follows: bool = False  # it wants the weights and does no task
    evaluates: bool = False  # it does evaluations alone, one at a time
    told: Words = field(default_factory=dict)  # as in its last Beat
    briefed: set[int] = field(
        default_factory=set
    )  # clients of whose training it was told a task, with its brief or word of none

    @property
    def client(self) -> int:
        """Return the client whose environments are the actor's own; client 0 for an evaluator, which has no number."""
        return max(0, self.number)

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

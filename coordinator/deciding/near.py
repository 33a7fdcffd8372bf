"""The actors of a pool on its own machine: who has which task, and what becomes of it. Pure: no sockets, no clock.

The one idea: the way to such an actor is cut only by the end of its process. So a task needs no lease, no attempt and no
verdict: it is at one actor until its answers are here, its actor ends, or its calls that have not begun are taken back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from shoal.coordinator.deciding.plans import Seat, Seats
from shoal.coordinator.deciding.plans.tickets import Tickets
from shoal.protocol.work import Task

AHEAD = 2  # tasks that an actor holds if calls are short or the plan gives ahead: it begins the next while answers travel
SLOW = 0.05  # seconds of a task after which the calls behind it are taken from its actor, if they have not begun
SETTLE = 0.01  # seconds after which what one process wrote into shared memory is seen by another, by far


@dataclass(frozen=True, slots=True)
class Give:
    """Send a task to an actor. certain: calls, from the first, that it may begin without a token; each other call needs one."""

    pid: int
    task: Task
    certain: int


@dataclass(frozen=True, slots=True)
class Rob:
    """Take back the tokens of an actor that it has not used, and tell `robbed` how many there were."""

    pid: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Let an actor begin no further call of its piece than it has claimed."""

    pid: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Take back the calls of a piece that its actor has not claimed, and tell `cut` if that was done. index: of its task."""

    pid: int
    index: int


Effect: TypeAlias = Give | Rob | Stop | Cut


@dataclass(slots=True)
class Out:
    """A task at an actor. numbers: of its tickets, in the order in which they are called. certain: as in Give. piece: a ticket
    of it stands for many calls."""

    task: Task
    numbers: list[int]
    certain: int
    piece: bool = False


@dataclass(slots=True, eq=False)
class Actor:
    """An actor. since: when it began with its first task. robbed: it gets no task before it has answered those that it has,
    because new tokens would let it begin calls that were taken from it. stopped: when it was last told to begin no further call
    of its piece; None: it was not. whole: nothing was taken from the piece that it is at."""

    pid: int
    tasks: deque[Out] = field(default_factory=deque)
    since: float = 0.0
    robbed: bool = False
    stopped: float | None = None
    whole: bool = True

    def room(self, now: float, slow: float) -> int:
        """Tasks that it may be given. slow: seconds of a task after which nothing is put behind it."""
        if not self.tasks:
            return AHEAD
        busy = self.robbed or self.tasks[0].task.alone or now - self.since > slow
        return 0 if busy else AHEAD - len(self.tasks)

    @property
    def waits(self) -> bool:
        """True if a call waits here behind another."""
        return not self.robbed and (len(self.tasks) > 1 or (bool(self.tasks) and len(self.tasks[0].numbers) > 1))

    def again_at(self, slow: float) -> float:
        """The time at which something is to be taken from this actor, unless it answers before; infinity if nothing is."""
        piece = bool(self.tasks) and self.tasks[0].piece and self.whole
        times = [self.since + slow] * self.waits
        times += [self.since + slow if self.stopped is None else self.stopped + SETTLE] * piece
        return min(times, default=math.inf)


class Near:
    """plan: of the pool. actors: by process id. heard: tasks whose answers came, of which each was accepted, or stale because
    nobody wanted the task any more. deaths: number of those that a call is blamed for. why: index of a task whose
    actor ended -> how, for those who ask why a ticket was given up. Times are in seconds of a clock that never goes back."""

    def __init__(self, plan: Tickets) -> None:
        self.plan = plan
        self.slow = math.inf if plan.ahead else SLOW
        self.actors: dict[int, Actor] = {}
        self.heard = self.accepted = self.stale = self.deaths = 0
        self.why: dict[int, str] = {}

    def came(self, pid: int) -> None:
        """Take in an actor that waits for tasks."""
        self.actors[pid] = Actor(pid)

    def answered(self, pid: int, index: int, now: float) -> bool:
        """Return whether this actor has this task, whose answers are here. An actor answers its tasks in order, and the next
        one has begun."""
        actor = self.actors.get(pid)
        if actor is None or not actor.tasks or actor.tasks[0].task.index != index:
            return False
        actor.tasks.popleft()
        actor.since = now
        actor.robbed = actor.robbed and bool(actor.tasks)
        actor.stopped, actor.whole = None, True
        wanted = index in self.plan.given
        self.heard, self.accepted, self.stale = self.heard + 1, self.accepted + wanted, self.stale + (not wanted)
        return wanted

    def ended(self, pid: int, ran: Sequence[int], how: str) -> None:
        """Take back the tasks of an actor whose process has ended. ran: (index, ticket) of the call that it began last; empty
        if it began none. The ticket is blamed if its answer is not here; the others wait again as they were."""
        if (actor := self.actors.pop(pid, None)) is None:
            return
        for out in actor.tasks:
            index = out.task.index
            given = self.plan.given.get(index)
            if given is None:
                continue  # it was withdrawn
            if ran and ran[0] == index and ran[1] in given.tickets:
                self.deaths += 1
                self.why[index] = how
                self.plan.fell(index, ran[1])
            else:
                self.plan.put_back(index)

    def refused(self, pid: int) -> None:
        """Take in that the task which an actor was given last could not be sent."""
        self.actors[pid].tasks.pop()

    def withdraw(self, index: int) -> int | None:
        """The process that has a task which nobody wants any more; None if no process has it. Its other tasks, and those calls
        of this task that are still wanted, are the plan's when it has ended."""
        return next((pid for pid, one in self.actors.items() if any(out.task.index == index for out in one.tasks)), None)

    def turn(self, now: float) -> Iterator[Effect]:
        """Take back calls that wait behind a slow one, and give tasks to actors that have room."""
        for actor in self.actors.values():
            if actor.waits and now - actor.since > self.slow:
                yield Rob(actor.pid)
            if actor.tasks and actor.tasks[0].piece:
                yield from self._part(actor, actor.tasks[0].task.index, now)
        if self.plan.waiting:
            yield from self._employ(now)

    def _part(self, actor: Actor, index: int, now: float) -> Iterator[Effect]:
        """Take back the calls of a piece that wait behind a slow one of it."""
        if not actor.whole or now - actor.since <= self.slow:
            return
        if actor.stopped is None:
            actor.stopped = now
            yield Stop(actor.pid)
        elif now - actor.stopped >= SETTLE:
            actor.stopped = now  # it may not have come to the piece yet
            yield Cut(actor.pid, index)

    def cut(self, pid: int) -> None:
        """Take in that calls of the piece at which an actor is were taken back, or that there were none."""
        self.actors[pid].whole = False

    def robbed(self, pid: int, tokens: int) -> None:
        """Let the last calls of an actor wait again: as many as it had tokens left, because it begins calls in order."""
        actor = self.actors[pid]
        actor.robbed = True
        for out in reversed(actor.tasks):
            many = min(tokens, len(out.numbers) - out.certain)
            if many > 0:
                self.plan.take_from(out.task.index, out.numbers[-many:])
                del out.numbers[-many:]
                tokens -= many

    def due(self, now: float) -> float | None:
        """Seconds until calls are to be taken from an actor, if it does not answer before; None if none wait behind others."""
        first = min((actor.again_at(self.slow) for actor in self.actors.values()), default=math.inf)
        return max(0.0, first - now) if first < math.inf else None

    def _employ(self, now: float) -> Iterator[Effect]:
        """Give tasks to actors that have none, then short calls to those that may hold one more."""
        if idle := [actor for actor in self.actors.values() if not actor.tasks]:
            yield from self._share(idle, len(idle), now)
        if self.plan.waiting and (
            rooms := [actor for actor in self.actors.values() if actor.tasks and actor.room(now, self.slow) > 0]
        ):
            yield from self._share(rooms, sum(actor.room(now, self.slow) for actor in rooms), now)

    def _share(self, actors: list[Actor], room: int, now: float) -> Iterator[Effect]:
        """Give the plan's next tasks to these actors, which have as much room."""

        def seats() -> Iterator[Seat]:
            return (Seat(actor.pid, 1, held=len(actor.tasks)) for actor in actors)

        places = (actor for actor in actors for _ in range(actor.room(now, self.slow) if actor.tasks else 1))
        for task, actor in zip(self.plan.assign(Seats(room, seats), (), 0, now), list(places), strict=False):
            certain = int(not actor.tasks)
            if certain:
                actor.since = now
            tickets = self.plan.given[task.index].tickets
            actor.tasks.append(Out(task, list(tickets), certain, any(one.calls > 1 for one in tickets.values())))
            yield Give(actor.pid, task, certain)

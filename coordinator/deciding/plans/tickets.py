"""The schedule of a pool: calls that wait, by priority and age, and are given out one by one or several at once.

The one idea: a call is a ticket, and a task holds one ticket or, where calls of this function are known to be short, as many as
last for CHUNK seconds. A ticket is back here if its task ends without its answer, and only the ticket that ran is to blame.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from shoal.coordinator.deciding.plans import Outcome, Seats
from shoal.coordinator.deciding.resources import NOTHING, ONE_CORE, Machine, Need, uses
from shoal.protocol.work import Task

Key: TypeAlias = tuple[float, float, int]
CHUNK = 0.005  # seconds that the tickets of one task take together, about: some times what a task costs beside its calls
MOST = 256  # tickets of one task
BYTES = 1 << 17  # bytes of the calls of one task of several tickets
SPREAD = 2  # tasks of equal size that the waiting tickets are cut into for each actor, at least, so that all end together
AGE = 60.0  # seconds of waiting that count as one priority
TOGETHER = 10.0  # seconds within which calls count as made at once: of those, the longest are given out first
OTHERWISE = 4.0  # times by which calls of a function must take more or less than before to change their place
LOOKED_AT = 100  # tickets that wait for what the machine lacks, past which no further ticket is looked at
RECENT = 0.25  # weight of the newest time in the mean of a function


@dataclass(slots=True)
class Batch:
    """Tickets whose results are taken one after another. room: bytes of results that nobody has taken, from which on no
    ticket of this batch is given out. came, taken: bytes of the results that are here, and of those that were taken; each is
    counted by one thread."""

    room: int
    came: int = 0
    taken: int = 0

    @property
    def full(self) -> bool:
        return self.came - self.taken >= self.room


@dataclass(slots=True, eq=False)
class Ticket:
    """A call. number: order in which calls were made. function: name by which the time of its calls is known. since: time when
    the call was made, in seconds, of which multiples of TOGETHER count: a ticket that has waited AGE seconds longer than
    another counts as one priority higher. retries: deaths of actors that may be blamed on it, before it is given up. once: it
    is never begun twice. faults: deaths blamed on it. cost: seconds that its caller expects it to take; None: what calls of
    this function took. timed: its actor may be ended when its time is up, so it has the actor for itself. calls: calls of a map
    that it stands for; of several, those that have not begun can be taken back. puts: names of values that
    its actor must have."""

    number: int
    function: str
    nbytes: int = 0
    since: float = 0.0
    priority: float = 0.0
    retries: int = 2
    once: bool = False
    batch: Batch | None = None
    need: Need = ONE_CORE
    faults: int = 0
    cost: float | None = None
    timed: bool = False
    calls: int = 1
    puts: tuple[str, ...] = ()


@dataclass(slots=True)
class Given:
    """The tickets of one task, by number. need, gpus: what the machine has promised them. blamed: the ticket that ran when its
    actor died; None: that is not known. machine: that promised it. session: of the actor that was told; b"": none was.
    far: that actor is on another machine."""

    tickets: dict[int, Ticket]
    need: Need
    gpus: tuple[int, ...] = ()
    blamed: int | None = None
    machine: Machine | None = None
    session: bytes = b""
    far: bool = False


@dataclass(slots=True)
class Tickets:
    """begins: says whether a ticket is still wanted, and marks its call as running. width: actors that there are. machine: what
    calls may take; None: whatever they need. ahead: True gives a long call to a busy actor too, which begins it without waiting
    for word: for calls whose results are taken in order, so that nothing is gained if another actor is free sooner. machine_of:
    the machine of the actor with a seat's number; None: all actors are of `machine`. ready: says whether the actor with a
    seat's number may have a ticket that needs values which machines keep; None: any may."""

    evaluate_every: ClassVar[int] = 0  # a pool has no evaluations

    begins: Callable[[Ticket], bool]
    width: int = 1
    machine: Machine | None = None
    machine_of: Callable[[int], Machine] | None = None
    ready: Callable[[Ticket, int], bool] | None = None
    waiting: list[tuple[Key, Ticket]] = field(default_factory=list)  # a heap
    given: dict[int, Given] = field(default_factory=dict)  # index of a task -> its tickets
    full: list[Ticket] = field(default_factory=list)  # tickets of full batches
    lost: list[tuple[Ticket, int]] = field(default_factory=list)  # tickets that are given up, with the index of their last task
    pace: dict[str, float] = field(default_factory=dict)  # function -> seconds of a call, a running mean
    costs: dict[str, float] = field(default_factory=dict)  # the same, by which calls are ordered: it changes seldom
    drawn: int = 0
    ahead: bool = False
    closed: str = ""  # why no ticket is given out now; "": tickets are
    bounded: bool = True  # False: full batches are given out too, because the pool is to end

    def offer(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            heapq.heappush(self.waiting, (self._key(ticket), ticket))

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        for outcome in news:
            if outcome.word == "aside":
                index = outcome.task.index
                self.fell(index, self.given[index].blamed if index in self.given else None)
        if not self.waiting or self.closed:
            return ()
        if self.machine_of is not None:
            return self._among(seats, self.machine_of, version)
        empty = sum(seat.held == 0 for seat in seats)
        tasks: list[Task] = []
        short = frozenset[str]()  # kinds of which there is not enough for a ticket that comes before
        aside: list[Ticket] = []  # tickets that wait for these
        while len(tasks) < seats.room and "cores" not in short and len(aside) < LOOKED_AT and (ticket := self._next()):
            single, alone = self._long(ticket), self._alone(ticket)
            if alone and not empty:
                self.offer([ticket])
                break
            need = ticket.need if empty else NOTHING  # a short call behind another at its actor
            if self.machine and (lacks := (short & uses(need)) or self.machine.lacks(need)):
                short |= lacks
                aside.append(ticket)
                continue
            if not self.begins(ticket):
                continue
            empty -= empty > 0
            tasks.append(self._task([ticket] if single else [ticket, *self._more(ticket)], version, alone, need, self.machine))
        self.offer(aside)
        return tasks

    def _among(self, seats: Seats, machine_of: Callable[[int], Machine], version: int) -> Sequence[Task]:
        """Tasks for idle actors of several machines: each ticket goes to the first whose machine has what the ticket needs."""
        idle = {seat.actor: machine_of(seat.actor) for seat in seats if seat.held == 0}
        idle = {at: machine for at, machine in idle.items() if not machine.closed}
        tasks: list[Task] = []
        aside: list[Ticket] = []  # tickets that no machine has enough for now
        while idle and len(aside) < LOOKED_AT and (ticket := self._next()):
            lacks = {at: machine.lacks(ticket.need) for at, machine in idle.items()}
            at = next((at for at, short in lacks.items() if not short and self._ready(ticket, at)), None)
            if at is None:
                aside.append(ticket)
                if all("cores" in short for short in lacks.values()):
                    break  # short calls would keep a call of many cores waiting for ever
            elif self.begins(ticket):
                tickets = [ticket] if self._long(ticket) else [ticket, *self._more(ticket)]
                tasks.append(self._task(tickets, version, True, ticket.need, idle.pop(at), at))
        self.offer(aside)
        return tasks

    def _ready(self, ticket: Ticket, seat: int) -> bool:
        return not ticket.puts or self.ready is None or self.ready(ticket, seat)

    def admits(self, made_from: int, version: int) -> bool:
        return True

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        return False

    def answered(self, index: int, answers: Iterable[tuple[int, float]]) -> Iterator[Ticket]:
        """Take in the answers of a task, as (ticket's number, seconds). Returns their tickets; the others of the task wait
        again."""
        given = self.take_back(index)
        for number, seconds in answers:
            if ticket := given.tickets.pop(number, None):
                before = self.pace.get(ticket.function, seconds)
                self.pace[ticket.function] = pace = max(seconds, 1e-6) * RECENT + before * (1 - RECENT)
                known = self.costs.get(ticket.function, 0.0)
                if not known / OTHERWISE < pace < known * OTHERWISE:
                    self._learn(ticket.function, pace)
                yield ticket
        self.offer(given.tickets.values())

    def _key(self, ticket: Ticket) -> Key:
        """Priority and age first, then the longest, then the order in which calls were made."""
        cost = self.costs.get(ticket.function, 0.0) if ticket.cost is None else ticket.cost
        return (ticket.since // TOGETHER * (TOGETHER / AGE) - ticket.priority, -cost, ticket.number)

    def _learn(self, function: str, cost: float) -> None:
        """Order the calls of a function by another cost, those too that wait: of one function the first made is the first."""
        self.costs[function] = cost
        self.waiting = [(self._key(ticket), ticket) for _, ticket in self.waiting]
        heapq.heapify(self.waiting)

    def take_back(self, index: int) -> Given:
        """Forget a task, and give back what the machine had promised it."""
        given = self.given.pop(index)
        if given.machine:
            given.machine.give_back(given.need, given.gpus)
        return given

    def release(self) -> None:
        """Let the tickets of batches that are no longer full wait again."""
        if self.full:
            held = self.full
            self.offer(one for one in held if not self._held(one))
            self.full = [one for one in held if self._held(one)]

    def where(self, number: int) -> int | None:
        """The index of the task that holds a ticket; None if no task does."""
        return next((index for index, given in self.given.items() if number in given.tickets), None)

    def _next(self) -> Ticket | None:
        """The next ticket whose batch has room for its result."""
        while self.waiting:
            _, ticket = heapq.heappop(self.waiting)
            if not self._held(ticket):
                return ticket
            self.full.append(ticket)
        return None

    def _held(self, ticket: Ticket) -> bool:
        return self.bounded and ticket.batch is not None and ticket.batch.full

    def _long(self, ticket: Ticket) -> bool:
        """Return whether a ticket gets a task for itself: its calls take long, or nobody knows, or it may end its actor."""
        return bool(ticket.puts) or self._alone(ticket) or self.pace.get(ticket.function, 1.0) > CHUNK

    def _alone(self, ticket: Ticket) -> bool:
        """Return whether a ticket gets an actor for itself: a long one, or one that may end its actor."""
        may_end = ticket.once or ticket.timed or ticket.faults > 0 or ticket.need is not ONE_CORE
        return may_end or (not self.ahead and self.pace.get(ticket.function, 1.0) > CHUNK)

    def _more(self, first: Ticket) -> Iterator[Ticket]:
        """Further tickets of the same function for a task that begins with this one."""
        share = len(self.waiting) // (SPREAD * max(1, self.width))
        many = min(MOST, share, int(CHUNK / self.pace[first.function]))
        nbytes = first.nbytes
        for _ in range(many - 1):
            if not self.waiting or (ticket := self.waiting[0][1]).function != first.function or self._long(ticket):
                return
            if (nbytes := nbytes + ticket.nbytes) > BYTES or self._held(ticket):
                return
            heapq.heappop(self.waiting)
            if self.begins(ticket):
                yield ticket

    def _task(
        self, tickets: Sequence[Ticket], version: int, alone: bool, need: Need, machine: Machine | None, where: int = -1
    ) -> Task:
        index = self.drawn
        self.drawn += 1
        gpus = machine.take(need) if machine else ()
        self.given[index] = Given({one.number: one for one in tickets}, need, gpus, machine=machine)
        words = {}
        if machine and need not in (ONE_CORE, NOTHING):
            words = {"threads": need.threads, "gpus": [machine.names[gpu] for gpu in gpus]}
            words |= {"ranks": need.ranks} if need.gang else {}
            words |= {"memory": need.nbytes} if need.nbytes and where >= 0 else {}
        return Task(version, index, (index,), "call", words=words, alone=alone, where=where)

    def put_back(self, index: int) -> None:
        """Let the tickets of a task that did not begin wait again."""
        self.offer(self.take_back(index).tickets.values())

    def take_from(self, index: int, numbers: Iterable[int]) -> None:
        """Let tickets of a task that have not begun wait again; those that were withdrawn meanwhile do not."""
        if given := self.given.get(index):
            self.offer(ticket for number in numbers if (ticket := given.tickets.pop(number, None)))

    def fell(self, index: int, blamed: int | None) -> None:
        """Take back a task that its actor's death, or a fault, ended. blamed: the ticket that ran; None: the only one."""
        if index not in self.given:
            return
        given = self.take_back(index)
        blamed = blamed if blamed in given.tickets else next(iter(given.tickets), None)
        for number, ticket in given.tickets.items():
            ticket.faults += number == blamed
            if number == blamed and (ticket.once or ticket.faults > ticket.retries):
                self.lost.append((ticket, index))
            else:
                self.offer([ticket])

"""A pool of one machine on made-up processes: the production's plan, machine and `Near`, and everything that can befall calls.

The one idea: a schedule is a seed. Processes die at any moment, calls end their process, take long for once, are cancelled and
killed; and at the end the books of the made-up processes say what each ticket has earned.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from shoal.coordinator.deciding.near import SLOW, Give, Near, Rob
from shoal.coordinator.deciding.plans.tickets import Ticket, Tickets
from shoal.coordinator.deciding.resources import ONE_CORE, Machine, Need
from shoal.simulation.mutants import Mutant

END = 3_600.0  # seconds of a schedule after which what still waits waits for ever
WAY = (1e-5, 2e-3)  # seconds that a message is on its way
MANY = 30_000  # events of a schedule, at most
HELD_UP = 3 * SLOW  # seconds that a call may wait at an actor behind one call, at most


@dataclass(eq=False)
class Process:
    """A made-up actor. tokens: in its pipe. packets: (index, numbers, certain) that it has not taken. at: (index, number) that
    its marks say. unsent: calls of the task that it is at, which it has begun. began: when the last of them began; None: it is
    at none."""

    pid: int
    tokens: int = 0
    packets: deque[tuple[int, list[int], int]] = field(default_factory=deque)
    at: tuple[int, ...] = ()
    unsent: list[int] = field(default_factory=list)
    began: float | None = None
    alive: bool = True
    busy: bool = False


class Violation(AssertionError):  # noqa: N818  a finding, as in audit.py
    """A promise of a pool that a schedule broke."""


class Schedule:
    """A schedule of a pool, as its seed says. begun: number of a ticket -> times that a process began it. losses: the same ->
    times that its process died after that, before its answer was sent. died_at: the same, if it was the last that the process
    began. ends: number -> what became of it."""

    def __init__(self, seed: int) -> None:
        self.draws = random.Random(seed)
        self.now, self.drawn = 0.0, 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        actors = self.draws.choice([1, 2, 2, 3, 5])
        self.machine = Machine(actors, 1_000, [1.0] * self.draws.choice([0, 1, 2]))
        self.machine.names = [str(gpu) for gpu in range(len(self.machine.gpus))]
        self.plan = Tickets(self._begins, actors, self.machine)
        self.near = Near(self.plan)
        self.processes: dict[int, Process] = {}
        self.tickets: dict[int, Ticket] = {}
        self.seconds: dict[int, float] = {}
        self.poison: dict[int, int] = {}  # number -> times that it still ends its process
        self.marked: set[int] = set()  # tickets that have begun, as their futures say
        self.cancelled: set[int] = set()
        self.killed: set[int] = set()
        self.begun: Counter[int] = Counter()
        self.died_at: Counter[int] = Counter()
        self.losses: Counter[int] = Counter()
        self.ends: dict[int, str] = {}
        self.deadly = self.draws.choice([0.0, 0.0, 0.02, 0.2])
        for _ in range(actors):
            self._born()
        for _ in range(self.draws.randint(1, 6)):
            self._later(self.draws.uniform(0, 2), self._submit)
        if self.draws.random() < 0.5:
            self._later(self.draws.uniform(0, 1), self._murder)

    def play(self) -> int:
        """Play the schedule to its end, and return the number of its events. Raises Violation."""
        count = 0
        while self.events:
            self.now, _, act = heapq.heappop(self.events)
            if self.now > END:
                break
            act()
            self._turn()
            if (count := count + 1) > MANY:
                raise Violation(f"{MANY:,} events, and no end")
        self._audit()
        return count

    # What befalls a pool

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self.drawn += 1
        heapq.heappush(self.events, (self.now + seconds, self.drawn, act))

    def _way(self) -> float:
        return self.draws.uniform(*WAY)

    def _born(self) -> None:
        pid = self.drawn = self.drawn + 1
        process = self.processes[pid] = Process(pid)
        self._later(self._way(), lambda: self.near.came(pid) if process.alive else None)

    def _submit(self) -> None:
        kind = self.draws.choice(["short", "short", "long", "any"])
        for _ in range(self.draws.choice([1, 5, 40, 400])):
            number = len(self.tickets)
            self.seconds[number] = 1e-4 if kind == "short" else self.draws.choice([1e-4, 0.01, 0.3])
            if self.draws.random() < 0.01:
                self.seconds[number] = self.draws.uniform(0.1, 5.0)  # for once
            if self.draws.random() < self.deadly:
                self.poison[number] = self.draws.choice([1, 2, 99])
            self.tickets[number] = Ticket(
                number,
                kind,
                since=self.now,
                priority=self.draws.choice([0, 0, 0, 1, 5]),
                retries=self.draws.choice([0, 2, 2, 2]),
                once=self.draws.random() < 0.05,
                need=self._need(),
            )
            self.plan.offer([self.tickets[number]])
        for _ in range(self.draws.choice([0, 0, 3])):
            number = self.draws.randrange(len(self.tickets))
            self._later(self.draws.uniform(0, 1), self.draws.choice([self._cancel, self._kill])(number))

    def _need(self) -> Need:
        if self.draws.random() < 0.8:
            return ONE_CORE
        cores = self.draws.choice([0, 1, self.machine.cores])
        need = Need(cores, self.draws.choice([0, 500, 1_000]), self.draws.choice([0, 0, 0.5, 1, 2]))
        return ONE_CORE if self.machine.never(need) else need

    def _cancel(self, number: int) -> Callable[[], None]:
        def act() -> None:
            if number not in self.marked and number not in self.ends:
                self.cancelled.add(number)
                self.ends[number] = "cancelled"

        return act

    def _kill(self, number: int) -> Callable[[], None]:
        """As `Running._taken_away` does."""

        def act() -> None:
            if number in self.ends:
                return
            self.ends[number] = "killed"
            self.killed.add(number)
            if (index := self.plan.where(number)) is not None:
                rest = self.plan.take_back(index).tickets
                self.plan.offer(ticket for ticket in rest.values() if ticket.number != number)
                if (pid := self.near.withdraw(index)) is not None:
                    self._die(self.processes[pid])

        return act

    def _murder(self) -> None:
        if living := [one for one in self.processes.values() if one.alive]:
            self._die(self.draws.choice(living))
        if self.draws.random() < 0.7:
            self._later(self.draws.uniform(0, 1), self._murder)

    # Processes

    def _die(self, process: Process) -> None:
        """A process ends. What it said before arrives before that."""
        if not process.alive:
            return
        process.alive = False
        self.losses.update(process.unsent)
        self.died_at.update(process.unsent[-1:])
        ran = process.at
        self._later(WAY[1], lambda: self._ended(process.pid, ran))
        self._later(self.draws.uniform(0.01, 0.1), self._born)

    def _ended(self, pid: int, ran: tuple[int, ...]) -> None:
        self.near.ended(pid, ran, "ended")

    def _came(self, process: Process, packet: tuple[int, list[int], int]) -> None:
        if process.alive:
            process.packets.append(packet)
            if not process.busy:
                self._next(process)

    def _next(self, process: Process) -> None:
        process.busy = bool(process.packets)
        if process.packets:
            index, numbers, certain = process.packets.popleft()
            self._call(process, index, deque(numbers), certain, [])

    def _call(self, process: Process, index: int, numbers: deque[int], certain: int, answers: list[int]) -> None:
        """Begin the next call of a task, or answer it."""
        if numbers and (certain > 0 or process.tokens > 0):
            if certain <= 0:
                process.tokens -= 1
            number = numbers.popleft()
            process.at, process.began = (index, number), self.now
            process.unsent.append(number)
            self.begun[number] += 1

            def ends() -> None:
                if not process.alive:
                    return
                if self.poison.get(number, 0) > 0:
                    self.poison[number] -= 1
                    self._die(process)
                    return
                self._call(process, index, numbers, certain - 1, [*answers, number])

            self._later(self.seconds[number], ends)
            return
        process.began, process.unsent = None, []
        self._later(WAY[1], lambda: self._answer(process, index, answers))
        self._next(process)

    def _answer(self, process: Process, index: int, numbers: list[int]) -> None:
        if process.pid in self.near.actors and self.near.answered(process.pid, index, self.now):
            for ticket in self.plan.answered(index, [(number, self.seconds[number]) for number in numbers]):
                self._end(ticket.number, "result")

    # The pool's own thread

    def _begins(self, ticket: Ticket) -> bool:
        if ticket.number in self.ends:
            return False
        self.marked.add(ticket.number)
        return True

    def _turn(self) -> None:
        for ticket, _ in self.plan.lost:
            if ticket.number not in self.killed:
                self._end(ticket.number, "lost")
        self.plan.lost.clear()
        for effect in self.near.turn(self.now):
            match effect:
                case Give(pid, task, certain):
                    process, numbers = self.processes[pid], list(self.plan.given[task.index].tickets)
                    tasks = self.near.actors[pid].tasks
                    if len(tasks) > 1 and any(out.task.alone for out in tasks):
                        raise Violation(f"ticket {numbers[0]} is to have process {pid} for itself, and has not")
                    process.tokens += len(numbers) - certain
                    self._later(WAY[1] / 2, self._packet(process, (task.index, numbers, certain)))  # they keep their order
                case Rob(pid):
                    process = self.processes[pid]
                    tokens, process.tokens = process.tokens, 0
                    self.near.robbed(pid, tokens)
        self._look()
        if (due := self.near.due(self.now)) is not None:
            self._later(due + 1e-6, lambda: None)

    def _packet(self, process: Process, packet: tuple[int, list[int], int]) -> Callable[[], None]:
        return lambda: self._came(process, packet)

    def _end(self, number: int, what: str) -> None:
        if number in self.ends:
            raise Violation(f"ticket {number} ended twice: {self.ends[number]}, then {what}")
        self.ends[number] = what

    # What must be true

    def _look(self) -> None:
        machine = self.machine
        if (
            machine.used_cores > machine.cores + 1e-6
            or machine.used_nbytes > machine.nbytes
            or min([0.0, *machine.gpus]) < -1e-6
        ):
            raise Violation("more was promised than the machine has")
        if abs(machine.used_cores - sum(given.need.cores for given in self.plan.given.values())) > 1e-6:
            raise Violation("the account of cores is not that of the tasks that are out")
        for process in self.processes.values():
            sure = sum(certain for _, _, certain in process.packets)
            held = process.alive and process.began is not None and process.pid in self.near.actors
            if held and process.tokens + sure and self.now - (process.began or 0.0) > HELD_UP:
                raise Violation(f"process {process.pid} holds up {process.tokens + sure} calls behind one")

    def _audit(self) -> None:
        waits = self.tickets.keys() - self.ends.keys()
        if waits:
            raise Violation(f"{len(waits)} tickets wait for ever, {min(waits)} among them")
        if self.plan.given and not any(actor.tasks for actor in self.near.actors.values()):
            raise Violation("a task is out, and at no actor")
        for number, ticket in self.tickets.items():
            for fault in _faults(self, number, ticket):
                raise Violation(f"ticket {number}: {fault}")
        if not self.plan.given and (self.machine.used_cores > 1e-6 or any(gpu < 1 - 1e-6 for gpu in self.machine.gpus)):
            raise Violation("what the machine promised is not given back")


def _faults(schedule: Schedule, number: int, ticket: Ticket) -> Iterator[str]:
    begun, died, end = schedule.begun[number], schedule.died_at[number], schedule.ends[number]
    if ticket.faults > died:
        yield f"blamed for {ticket.faults} deaths, and it ran in {died}"
    if end == "lost" and not (ticket.faults > ticket.retries or (ticket.once and ticket.faults)):
        yield f"given up after {ticket.faults} faults of {ticket.retries} retries"
    if ticket.faults > ticket.retries + 1:
        yield f"tried again after {ticket.faults} faults, and may be {ticket.retries} times"
    if end == "result" and not begun:
        yield "has a result, and never began"
    if end == "cancelled" and begun:
        yield "was cancelled, and began"
    if ticket.once and begun > 1:
        yield f"may begin once, and began {begun} times"
    if begun > 1 + schedule.losses[number]:
        yield f"began {begun} times, and its processes ended {schedule.losses[number]} times"


def play(seed: int) -> int:
    """Play a schedule of a pool. Returns the number of its events. Raises Violation."""
    return Schedule(seed).play()


MUTANTS = (
    Mutant("calls that did not run are blamed", Near, "ended", "ran[0] == index and ran[1] in given.tickets", "True"),
    Mutant("tasks of an actor that ended are forgotten", Near, "ended", "self.plan.put_back(index)", "pass"),
    Mutant("the first calls are taken back", Near, "robbed", "out.numbers[-many:])", "out.numbers[:many])"),
    Mutant("an actor that was robbed gets tokens", Near, "robbed", "actor.robbed = True", "pass"),
    Mutant("nobody looks at slow calls", Near, "turn", "now - actor.since > self.slow", "now < 0"),
    Mutant("every task's first call needs no token", Near, "_share", "int(not actor.tasks)", "1"),
    Mutant("calls that take long are queued behind others", Tickets, "assign", "alone and not empty", "False"),
    Mutant("calls that begin once travel with others", Tickets, "_alone", "ticket.once or ", ""),
    Mutant("cancelled calls are made", Tickets, "assign", "not self.begins(ticket)", "not self.begins(ticket) and False"),
    Mutant("all calls of a task are blamed", Tickets, "fell", "ticket.faults += number == blamed", "ticket.faults += 1"),
    Mutant("a call that may begin once is tried again", Tickets, "fell", "ticket.once or ", ""),
    Mutant("retries have no end", Tickets, "fell", "ticket.faults > ticket.retries", "False"),
    Mutant("retries are one too few", Tickets, "fell", "ticket.faults > ticket.retries", "ticket.faults >= ticket.retries"),
    Mutant("a task keeps what it was promised", Tickets, "take_back", "if given.machine:", "if False:"),
    Mutant("calls that are taken back are forgotten", Tickets, "take_from", "self.offer(", "list("),
    Mutant("what is short is given out", Tickets, "assign", "short & uses(need)) or self.machine.lacks(need)", "frozenset())"),
    Mutant("what was set aside is forgotten", Tickets, "assign", "self.offer(aside)", "pass"),
)

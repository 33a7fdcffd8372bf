"""A pool's coordinator on a thread of its own: the core, server and crew of any run, with tickets for a plan.

The one idea: callers put tickets into a queue and wake the thread; everything else that knows of a ticket runs on that thread,
so nothing but the queue is shared.
"""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from shoal.actors.pool import Pool as Nursery
from shoal.coordinator.deciding.plans.tickets import Ticket, Tickets
from shoal.coordinator.deciding.resources import Machine
from shoal.coordinator.reports import Progress, Report
from shoal.protocol.calls import Answer, Call
from shoal.protocol.errors import UserError, WorkerLost
from shoal.protocol.marks import Marks
from shoal.protocol.shared import SHORT, ShortError
from shoal.protocol.trusted import GoneError, opened
from shoal.protocol.work import Metrics
from shoal.runs.crew import Crew
from shoal.runs.socketdir import socket_folder
from shoal.tasks.entries import REFUSED, Entry
from shoal.tasks.life import life_of
from shoal.tasks.machine import machine
from shoal.tasks.meter import Meter, Tally
from shoal.tasks.near import Nearby
from shoal.tasks.weighing import Held, Weigher

if TYPE_CHECKING:  # a pool of this machine alone needs none of them, and starts in half the time
    from shoal.coordinator.deciding.actor import Actor as FarActor
    from shoal.coordinator.deciding.near import Actor as NearActor
    from shoal.coordinator.keeping.disk import DiskTrouble
    from shoal.tasks.far import Far
    from shoal.tasks.joining import Door
    from shoal.tasks.kept import Kept

REPORTS = 50  # reports that are kept, for a person who asks
NEAR = sys.platform == "linux"  # elsewhere there are no sockets that keep messages apart, and no memory without a name


class Reports:
    """The observer of a pool: it keeps what was reported last."""

    def __init__(self) -> None:
        self.last: deque[Report] = deque(maxlen=REPORTS)

    def report(self, report: Report) -> None:
        self.last.append(report)

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        """Do nothing: no version follows."""

    def moved(self, progress: Progress) -> None:
        """Do nothing: `status` tells whoever asks."""


class Running(threading.Thread):
    """The thread. It makes the nursery itself, because a process ends with the thread that made it.

    begun: set when calls can be made, or cannot at all: `fault` then says why. entries: calls that are not done. near: the
    actors, if all are forks of this program; far: the actors, if they may be anywhere. door: where actors of other machines
    join; None: nowhere. address: that actors connect to. meter: tells a person how far this pool is; None: nobody is told.
    """

    def __init__(
        self,
        actors: int,
        seed: int,
        threads: int | None,
        folder: Path | None,
        given: object,
        ahead: int,
        door: Door | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(name="shoal-pool", daemon=True)
        self.near: Nearby | None = None
        self.far: Far | None = None
        self.actors = actors
        self.begun = threading.Event()
        self.fault: BaseException | None = None
        self.reports = Reports()
        self.entries: dict[int, Entry] = {}
        self.machine = machine(actors)
        self.door, self.address = door, ""
        self.plan = Tickets(self._begins, actors, self.machine, ahead=ahead > 1)
        self._ahead, self.meter = ahead, meter
        self.marks, self._seed, self._threads, self._given = Marks(), seed, threads, given
        self.folder, self.kept = folder, cast("Kept | None", None)
        self.each: dict[str, float] = {}  # function -> seconds of a call among others that were made at once
        self._awaiting = 0  # calls that wait for the results of others
        self.weigher, self._many = Weigher(), 0  # actors that are too many
        self._times: dict[int, float] = {}  # number of a running call -> when its time is up
        self._offered: deque[Entry] = deque()
        self._asked: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._closing = self._over = self._woken = False
        self._wake: Callable[[], object] = bool
        self._crew: Crew | None = None

    # Called by any thread

    def offer(self, entries: Iterable[Entry]) -> None:
        """Take calls. Raises RuntimeError if the pool takes none any more, WorkerLost if it has no actors."""
        with self._lock:
            self._check()
            self._offered.extend(entries)
        self.nudge()

    def more(self, entries: Iterable[Entry]) -> None:
        """Take calls of a map that was begun before, also while the pool is shut down. Raises WorkerLost if it has ended."""
        with self._lock:
            if self._over:
                raise self.ended()
            self._offered.extend(entries)
        self.nudge()

    @property
    def over(self) -> bool:
        """True if the pool has ended."""
        return self._over

    @property
    def open(self) -> bool:
        """True if calls are taken."""
        return not (self._closing or self._over)

    def _check(self) -> None:
        if self._closing:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._over:
            raise self.ended()
        if self.near and self.near.short and not self.near.near.actors:
            raise UserError(f"no process can begin a call: {self.near.short}")

    def ended(self) -> WorkerLost:
        """The error of a call that is not done when the pool has ended. Its cause is a fault of Shoal, if there is one."""
        error = WorkerLost(f"the pool has ended: {self.fault if isinstance(self.fault, WorkerLost) else repr(self.fault)}")
        error.__cause__ = self.fault
        return error

    def expect(self, tally: Tally | None = None) -> None:
        """Take a call that waits for the results of others, and is offered by `follow`. tally: of a map whose calls are offered
        by `more`. Raises as `offer` does."""
        with self._lock:
            self._check()
            self._awaiting += 1
            if tally and self.meter:
                self.meter.tallies.append(tally)

    def follow(self, entry: Entry | None) -> None:
        """Take a call that was expected; None: it is not made, because what it waited for failed."""
        with self._lock:
            self._awaiting -= 1
            over = self._over
            if entry is not None and not over:
                self._offered.append(entry)
        if entry is not None and over:
            self._fail(entry, self.ended())
        self.nudge()

    def nudge(self) -> None:
        """Let the thread look at what is new. Many calls in a row wake it once."""
        if not self._woken:
            self._woken = True
            self._wake()

    def ask(self, act: Callable[[], None]) -> bool:
        """Let the thread call a function at its next look. Returns False if it has ended."""
        with self._lock:
            if self._over:
                return False
            self._asked.append(act)
        self.nudge()
        return True

    def close(self, cancel: bool = False) -> None:
        """Take no more calls, and end when all are done. cancel: those that have not begun are cancelled."""
        with self._lock:
            self._closing = True
        if not (cancel and self.ask(self._cancel)):
            self.nudge()

    # On the thread

    def run(self) -> None:
        try:
            with ExitStack() as stack:
                self._run(stack)
        except BaseException as error:  # noqa: BLE001  handed on to those who wait for results
            self.fault = error
        finally:
            with self._lock:
                self._over, asked = True, list(self._asked)
                self._woken = True  # a caller may have offered calls, and not yet have said so
            self._take_in()
            for entry in list(self.entries.values()):
                self._fail(entry, self.ended())
            for act in asked:
                act()
            if self.meter:
                self.meter.rest()
            self.begun.set()

    def _run(self, stack: ExitStack) -> None:
        nursery = None
        if self.door or not NEAR:
            import shoal.actors.loop  # noqa: F401  before the forks, which all need it
        if self.actors:
            nursery = Nursery.forked(life_of(self.marks, self._seed, self._threads, self._given))
            stack.callback(nursery.close)
            nursery.ready()
        if self.folder is not None:  # after the fork: a copy of its lock would outlive this process
            from shoal.tasks.kept import Kept

            self.kept = Kept(self.folder, lambda text: self.reports.report(Report("durable", text, "warning")))
            stack.callback(self.kept.close)
        if nursery:
            self._crew = Crew(nursery, self.actors, self.reports.report, time.monotonic, self._deaths)
        near = self._crew is not None and self.door is None and NEAR
        reason = self._run_near(stack, self._crew) if near and self._crew else self._run_far(stack)
        self.fault = WorkerLost(reason)

    def _deaths(self) -> int:
        if self.near:
            return self.near.near.deaths
        return self.far.core.facts.ledger.counts.deaths if self.far else 0

    def _run_far(self, stack: ExitStack) -> str:
        """Make calls in actors of any machine, with the core, server and messages of any run."""
        from shoal.protocol.link import Hub
        from shoal.tasks.far import Far

        door, keys = self.door, self.door.keys if self.door else None
        wire = Hub(door.address if door else f"ipc://{stack.enter_context(socket_folder()) / 'hub'}", keys)
        stack.callback(wire.close)
        self.address = wire.address
        self._wake = wire.wake
        self.far = far = Far(self, wire, door, self._crew, self._seed, self._ahead)
        if self._crew:
            own = [keys.own.public, keys.own.secret, keys.pair.public] if keys else []
            self._crew.hire({"address": wire.address, "keys": own})
        self.begun.set()
        return far.run()

    def _run_near(self, stack: ExitStack, crew: Crew) -> str:
        """Make calls in actors of this machine alone, over sockets that nothing but the end of a process can cut."""
        path = stack.enter_context(socket_folder()) / "near"
        near = self.near = Nearby(
            self.plan, path, crew, self.marks, time.monotonic, self.calls, self.done, self._cut, self._unsent
        )
        stack.callback(near.close)
        self._wake = near.wake
        crew.hire({"near": str(path)})
        self.begun.set()
        return near.run(self.ends, self.nudged, lambda: bool(self._times or self.plan.closed))

    def ends(self) -> str:
        """The reason for which the pool ends now; "" if it goes on."""
        if self._closing:
            if self.far and not self.far.core.facts.roster:  # no actor is there, to which the plan could give a cancelled call
                self._strike()
            with self._lock:
                if not (self.entries or self._offered or self._asked or self._awaiting):
                    return "the pool is shut down"
        return self._crew.spent() if self._crew and (self.actors or self._crew.pool.fault) else ""

    def _strike(self) -> None:
        """Forget calls that were cancelled."""
        for number, entry in list(self.entries.items()):
            if not entry.begun and entry.future.cancelled():
                entry.future.set_running_or_notify_cancel()
                del self.entries[number]

    def nudged(self) -> bool:
        """Take in what callers offered and asked, and give up the tickets that the plan has lost. True if there was any."""
        for ticket, index in self.plan.lost:
            why = self._whys().pop(index, "its actor died")
            if entry := self.entries.get(ticket.number):
                times = "its process" if ticket.faults == 1 else f"its process {ticket.faults} times"
                text = f"{ticket.function} ended {times}; the last time: {why}"
                if why.startswith(REFUSED):
                    text = f"{ticket.function} gave no result: {why}"
                self._fail(entry, WorkerLost(text))
        self.plan.lost.clear()
        if self._times:
            self._time_out()
        if (self.plan.waiting or self.plan.given) and self.weigher.due(time.monotonic()):
            self._weigh()
        if self._many:
            self._trim()
        if self.meter and self.meter.due(now := time.monotonic()):
            self._tell(self.meter, now)
        if self.far:
            self.far.tidy()
        return self._take_in()

    def _tell(self, meter: Meter, now: float) -> None:
        """Tell a person at a terminal how far this pool is."""
        if not (self.entries or self._offered or self._awaiting):
            meter.rest()
            return
        held = [bool(one.tasks) for one in self._here()]
        meter.look(now, sum(one.piece is None for one in self.entries.values()), sum(held), len(held))

    def _here(self) -> Iterable[NearActor | FarActor]:
        """The actors that are here now."""
        if self.near:
            return self.near.near.actors.values()
        return self.far.actors() if self.far else ()

    def _whys(self) -> dict[int, str]:
        """Index of a task that was given up -> how its actor ended."""
        if self.near:
            return self.near.near.why
        return self.far.core.facts.ledger.left_out if self.far else {}

    def _weigh(self) -> None:
        """Look at the memory of the calls that run and of the machine."""
        warnings: list[str] = []
        with suppress(OSError):  # no descriptor is left to read figures of the system
            warnings = self.weigher.look(self._held())
        if self.far:
            warnings += self.far.weigh(self.weigher)
        for text in warnings:
            self.reports.report(Report("memory", text, "warning"))
            print(f"shoal: {text}", file=sys.stderr)
        self._shut()

    def _shut(self) -> None:
        self.plan.closed = self.weigher.short or "the pool gets fewer actors" * (self._many > 0)

    def _held(self) -> Iterator[Held]:
        """The calls that run here and whose needs name memory."""
        for pid, one in self.near.near.actors.items() if self.near else ():
            given = self.plan.given.get(one.tasks[0].task.index) if one.tasks else None
            if given and given.need.nbytes:
                yield Held(pid, next(iter(given.tickets.values())).function, given.need.nbytes)

    @property
    def grows(self) -> bool:
        """True if this pool can fork actors."""
        return self._crew is not None

    def resize(self, many: int) -> None:
        """Have so many actors here from now on."""
        if self._crew:
            self.actors = self.plan.width = many
            self.machine.cores = machine(many).cores
            self._many = max(0, self._crew.resize(many))
            self._shut()

    def _trim(self) -> None:
        """Let actors go that are too many, as soon as they have no call."""
        if self._crew:
            gone = self.near.dismiss(self._many) if self.near else self.far.dismiss(self._many) if self.far else []
            for pid in gone:
                self._crew.let_go(pid)
            self._many -= len(gone)
            self._shut()

    def _take_in(self) -> bool:
        if not self._woken:
            return False
        self.plan.bounded = not self._closing
        self._woken = False  # before the queues are emptied: who adds from now on wakes the thread again
        offered = []
        while self._offered:
            entry = self._offered.popleft()
            self.entries[entry.ticket.number] = entry
            offered.append(entry.ticket)
            if self.meter and entry.piece is None:
                self.meter.singles += 1
        self.plan.offer(offered)
        for _ in range(len(self._asked) * (not self._over)):  # what is asked meanwhile has its turn at the next look
            self._asked.popleft()()
        self.plan.release()
        return True

    def _begins(self, ticket: Ticket) -> bool:
        entry = self.entries.get(ticket.number)
        if entry is None:
            return False
        if not entry.begun and not entry.future.set_running_or_notify_cancel():
            del self.entries[ticket.number]
            return False
        entry.begun = True
        if entry.how.timeout:
            self._times[ticket.number] = time.monotonic() + entry.how.timeout
        return True

    def _time_out(self) -> None:
        """End the processes of calls whose time is up."""
        now = time.monotonic()
        for number in [number for number, at in self._times.items() if at <= now or number not in self.entries]:
            del self._times[number]
            if self.plan.where(number) is not None and (entry := self._taken_away(number)):
                what = f"{entry.ticket.function} took longer than timeout={entry.how.timeout:g} s, and its process was ended"
                entry.future.set_exception(TimeoutError(what))

    def calls(self, index: int) -> Sequence[Call]:
        """The calls of a task; none if it was withdrawn, or its actor died, after its brief was asked for in this turn."""
        given = self.plan.given.get(index)
        return self.calls_of([self.entries[number] for number in given.tickets] if given else ())

    def _unsent(self, index: int) -> None:
        """Give up the calls of a task that cannot be sent: its arguments find no memory, or no descriptor for it."""
        for ticket in self.plan.take_back(index).tickets.values():
            why = f"the arguments of {ticket.function} cannot be sent: there is no memory for them, or no descriptor; "
            self._fail(self.entries[ticket.number], UserError(why + "close files, raise the limit (ulimit -n), or free memory"))

    def _cut(self, pid: int, index: int) -> bool:
        """Take back the calls that a process has not claimed of the piece at which it is. Returns False if it has not come to
        a piece of this task, or has claimed nothing of it."""
        ran, at = self.marks.ran(pid), self.marks.claimed(pid)
        entry = self.entries.get(ran[2]) if ran[1:2] == (index,) else None
        if not at or entry is None or entry.piece is None or self.marks.ran(pid) != ran:
            return False
        entry.piece.cut(at)
        return True

    def calls_of(self, entries: Iterable[Entry]) -> Sequence[Call]:
        return [Call(one.ticket.number, one.function.data, one.arguments.data) for one in entries]

    def done(self, index: int, answers: Sequence[Answer]) -> None:
        came = {one.ticket: one for one in answers}
        gpus, again = self.plan.given[index].gpus, list[Ticket]()
        if self.kept:
            self._keep(
                self.kept,
                [(self.entries[number].key, came[number]) for number in self.plan.given[index].tickets if number in came],
            )
        for ticket in self.plan.answered(index, [(one.ticket, one.seconds) for one in answers]):
            entry, answer = self.entries.pop(ticket.number), came[ticket.number]
            if answer.raised and entry.how.retry_on and self._again(entry, answer):
                again.append(ticket)
                continue
            try:
                self._complete(entry, answer)
            except GoneError:
                if self._lost(entry):
                    again.append(ticket)
        self.plan.offer(again)
        if gpus:
            self._renew(index)

    def _complete(self, entry: Entry, answer: Answer) -> None:
        """Complete a call, with descriptors of the reserve if the program holds all others. Raises GoneError."""
        try:
            entry.complete(answer)
        except ShortError as short:
            try:
                with self.near.reserve.lent() if self.near else nullcontext():
                    entry.complete(answer)
            except ShortError:
                what = f"{entry.ticket.function} was done, and its result cannot be opened: {short}"
                entry.future.set_exception(UserError(what))

    def _lost(self, entry: Entry) -> bool:
        """Return whether a call is to be made again whose process ended between its answer and the reading of its result, and
        take it in again if so; else it fails."""
        ticket = entry.ticket
        ticket.faults += 1
        if ticket.once or ticket.faults > ticket.retries:
            entry.future.set_exception(
                WorkerLost(f"{ticket.function} was done, and its process ended before its result was read")
            )
            return False
        self.entries[ticket.number] = entry
        return True

    def _again(self, entry: Entry, answer: Answer) -> bool:
        """Return whether a call is to be made again after what it raised, and take it in again if so."""
        number = entry.ticket.number
        try:
            error, _ = opened(answer.parcel)
        except BaseException:  # noqa: BLE001  an exception's own code runs when it is unpickled; `_complete` raises what it raised
            return False
        if not isinstance(error, entry.how.retry_on) or entry.tries >= entry.how.retries or self.marks.cancelled(number):
            return False
        entry.tries += 1
        self.entries[number] = entry
        return True

    def _keep(self, kept: Kept, answers: Sequence[tuple[bytes, Answer]]) -> None:
        """Make results durable before their futures are done; where the disk is full, as soon as there is room."""
        from shoal.coordinator.keeping.disk import lasting

        for key, answer in answers:
            if not answer.raised:
                with suppress(GoneError):  # its call is made again
                    kept.add(key, answer.parcel)

        def complain(full: DiskTrouble) -> None:
            self.reports.report(Report("disk", f"{full}: results wait until there is room", "error"))

        lasting(kept.commit, bool, complain)

    def _renew(self, index: int) -> None:
        """End the process that did this task, which another replaces: CUDA keeps to the devices with which it began. Its large
        results are opened by now, which lie in that process's memory."""
        if self.near and self._crew:
            self._crew.evict([self.near.answering])
        elif self.far:
            self.far.renew(index)

    def soon(self, act: Callable[[], None]) -> None:
        """Call a function at the next look. Called on the thread."""
        self._asked.append(act)
        self._woken = True

    def machines(self) -> list[Machine]:
        """The machines that are known, for any thread."""
        return [self.machine] * (self.actors > 0) + (self.far.machines() if self.far else [])

    def _fail(self, entry: Entry, error: BaseException) -> None:
        self.entries.pop(entry.ticket.number, None)
        if entry.begun or entry.future.set_running_or_notify_cancel():
            entry.future.set_exception(error)

    def _cancel(self) -> None:
        here = self.near.near.actors if self.near else self.far.core.facts.roster if self.far else ()
        if self._crew and not (here or self._crew.spent()):
            self.soon(self._cancel)  # an executor's first calls have begun, and actors are only starting
            return
        if self.near:
            self.near.give()  # the same: actors may have come in this turn
        for entry in [one for one in self.entries.values() if not one.begun]:
            if entry.future.cancel():
                entry.future.set_running_or_notify_cancel()
                del self.entries[entry.ticket.number]

    def flag(self, number: int) -> None:
        """Let `shoal.cancelled()` be True in a call that is running, for any thread."""
        self.marks.cancel(number)
        if self.far and self.door:
            self.ask(partial(self.far.flag, number))

    def kill(self, number: int) -> bool:
        """End the process that is at a call, for any thread. Returns False if the call is done."""
        ended = threading.Event()
        killed: list[bool] = []

        def act() -> None:
            try:
                killed.append(self._kill(number))
            finally:
                ended.set()

        if not self.ask(act):
            return False
        if threading.current_thread() is not self:  # else a callback of a future asks, and the thread gets to it afterwards
            ended.wait()
        return killed == [True] or not killed

    def _kill(self, number: int) -> bool:
        entry = self._taken_away(number)
        return entry is not None and entry.future.killed()

    def _taken_away(self, number: int) -> Entry | None:
        """Forget a call, and end the process that is at it. Returns None if the call is done."""
        index = self.plan.where(number)
        lease = self.far.lease(index) if self.far and index is not None else None
        if number not in self.entries or (lease is not None and lease.folding):
            return None  # done, or its answer is here and is taken in this turn
        entry = self.entries.pop(number)
        if index is not None:
            rest = self.plan.take_back(index).tickets
            self.plan.offer(ticket for ticket in rest.values() if ticket.number != number)
            if self.near:
                self.near.evict(index)
            elif self.far:
                self.far.withdraw(index, lease)
        return entry


def started(
    actors: int,
    seed: int,
    threads: int | None,
    folder: Path | None,
    given: object = None,
    ahead: int = 1,
    door: Door | None = None,
    meter: Meter | None = None,
) -> Running:
    """A thread whose pool takes calls. Raises UserError if its processes cannot be made, or its folder is in use."""
    running = Running(actors, seed, threads, folder, given, ahead, door, meter)
    running.start()
    running.begun.wait()
    if running.fault is not None:
        if getattr(running.fault, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise UserError(f"a pool cannot be made: {SHORT}") from running.fault
        raise running.fault
    return running

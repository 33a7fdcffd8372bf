"""The actors of a pool that may be anywhere: the core, server and messages of any run, with tickets for a plan.

The one idea: what an actor is given, and how its answers are read, depends on who it is. A fork of this program is sent
pickles; anybody else is sent plain values, unless both ends said that pickles may travel.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from shoal.actors.loop import host_id
from shoal.coordinator.answers import Answers
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import Dismiss, Flag, Withdraw
from shoal.coordinator.deciding.ledger import Lease
from shoal.coordinator.deciding.plans.tickets import Given, Ticket
from shoal.coordinator.deciding.resources import Machine
from shoal.coordinator.learner import Learner
from shoal.coordinator.server import Outside, Server
from shoal.protocol import plaincalls
from shoal.protocol.calls import pack_calls, read_answers
from shoal.protocol.codec import Terms, pack_welcome
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle
from shoal.protocol.link import Hub
from shoal.protocol.trusted import pack, whole
from shoal.protocol.work import Words
from shoal.runs.crew import Crew
from shoal.tasks.entries import REFUSED, Entry
from shoal.tasks.inputs import Put
from shoal.tasks.joining import KILLED, UNTRUSTING, Door
from shoal.tasks.shelves import Place, Shelves
from shoal.tasks.weighing import Weigher, shortage

if TYPE_CHECKING:
    from shoal.tasks.running import Running

AHEAD, STOCK = 2, 0.01  # tasks that an actor holds, if their calls are short; seconds for which they last
FEWER = "the pool gets fewer actors of its own"
OLDER = "the pool sends values that are kept on a machine, and this actor's Shoal is older: install the pool's version there"
LAGS = 10_000  # contributions after which the statistics of a run, which a pool has no use for, are emptied


class Far:
    """pool: whose thread calls all of this, but for `machines`. wire: to the actors. door: where actors of other machines
    join; None: nowhere. crew: of this machine's actors; None: there are none. ahead: long calls that an actor holds."""

    def __init__(self, pool: Running, wire: Hub, door: Door | None, crew: Crew | None, seed: int, ahead: int) -> None:
        self._pool, self._door, self._crew = pool, door, crew
        self._hosts: dict[str, Machine] = {}  # host of actors elsewhere -> its machine
        bounds = Bounds(1 if door else ahead, AHEAD, STOCK, attempts=1, strikes=0, briefs=True, watched=True, endless=True)
        self.core = Core(pool.plan, Goal(), bounds, now=time.monotonic())
        self._shelves, self._puts = Shelves(), weakref.WeakValueDictionary[str, Put[Any]]()
        self._told: dict[bytes, Words] = {}  # session -> what was taken in last of what it says
        if door:
            pool.plan.machine_of, pool.plan.ready = self._machine_of, self._ready
        keys = door.keys if door else None
        learner = Learner(Answers(self._brief, self._took), Inspector(), time.monotonic, prompt=True)
        outside = Outside(pool.ends, nudged=pool.nudged)
        if crew:
            outside = Outside(pool.ends, nudged=pool.nudged, gone=crew.gone, ran=self._ran, evict=crew.evict)
        self.server = Server(
            self.core,
            wire,
            learner,
            pool.reports,
            run="pool",
            host=host_id(),
            welcome=pack_welcome(Terms({"pool": True, "seed": seed}, learner.newest[1].layout)),
            layouts=(),
            clock=time.monotonic,
            outside=outside,
            local=(keys.own.public,) if keys else () if door else ("",),
            runs=True,
        )

    def run(self) -> str:
        """Turn until the pool ends. Returns why it did."""
        return self.server.run().reason

    def ours(self, actor: Actor) -> bool:
        """Return whether an actor is a fork of this program. Anybody else's answers are never unpickled, unless both ends said
        so."""
        keys = self._door.keys if self._door else None
        return self._door is None or (keys is not None and actor.user == keys.own.public)

    def actors(self) -> Iterable[Actor]:
        """The actors that are here now."""
        return self.core.facts.roster.actors.values()

    def machines(self) -> list[Machine]:
        """The machines of actors elsewhere, for any thread."""
        return list(self._hosts.values())

    def host_of(self, actor: Actor) -> Machine:
        if self.ours(actor):
            return self._pool.machine
        if actor.host not in self._hosts:
            self._hosts[actor.host] = made = Machine(max(1, actor.cores), actor.memory)
            made.add(actor.gpus)
        return self._hosts[actor.host]

    def _machine_of(self, number: int) -> Machine:
        """The machine of the actor with this number."""
        return self.host_of(self._with(number))

    def _with(self, number: int) -> Actor:
        return next(one for one in self.actors() if one.number == number)

    def _ready(self, ticket: Ticket, number: int) -> bool:
        """Return whether the actor with this number may have a call that needs values which machines keep."""
        actor = self._with(number)
        return self.ours(actor) or self._shelves.ready(actor.session, _place(actor), ticket.puts, time.monotonic())

    def tidy(self) -> None:
        """Take in what actors say that they keep, and empty the statistics of a run."""
        for actor in self.actors() if self._puts else ():
            if actor.told is not self._told.get(actor.session):
                self._told[actor.session] = actor.told
                self._shelves.told(actor.session, _place(actor), actor.told.get("puts"))
        if len(self._told) > len(self.core.facts.roster.actors):
            here = {actor.session for actor in self.actors()}
            self._told = {session: told for session, told in self._told.items() if session in here}
            self._shelves.keep(here)
        if len(self.server.telling.tally.lags) > LAGS:
            self.server.telling.tally.flush()

    def flag(self, number: int) -> None:
        """Tell the actor elsewhere that is at a call that its caller gave it up."""
        index = self._pool.plan.where(number)
        if index is not None and (actor := self._at(index)) is not None and not self.ours(actor):
            self.server.handle(Flag((0, index), (number,)))

    def weigh(self, weigher: Weigher) -> list[str]:
        """Take in what actors elsewhere say of their memory. Returns warnings for a person."""
        warnings = []
        for machine in self.machines():
            machine.closed = ""
        for actor in self.actors():
            if self.ours(actor):
                continue
            match actor.told.get("free"):
                case [int(left), int(total)]:
                    machine = self.host_of(actor)
                    machine.closed = machine.closed or shortage(left, total)
            match actor.told.get("used"):
                case [int(index), int(used)] if (given := self._pool.plan.given.get(index)) and given.session == actor.session:
                    function = next(iter(given.tickets.values())).function
                    warnings.append(weigher.judge(function, given.need.nbytes, used))
        return [one for one in warnings if one]

    def closed(self) -> Iterable[tuple[str, str]]:
        """(host, why no call begins there) of machines elsewhere."""
        return [(host, one.closed) for host, one in self._hosts.items() if one.closed]

    # Briefs and answers

    def _brief(self, index: int) -> Bundle:
        """The calls of a task; none if it was withdrawn, or its actor died, after its brief was asked for in this turn, or if
        another actor than the plan chose has the task: its calls come back, and are given out anew."""
        given = self._pool.plan.given.get(index)
        if given is None or self._door is None:
            return pack_calls(self._pool.calls(index))
        actor = self._at(index)
        if actor is None:  # it was dismissed in this turn
            return pack_calls(())
        strange = given.session not in (b"", actor.session)
        given.session, given.far = actor.session, not self.ours(actor)
        if not given.far:
            return pack_calls([] if strange else self._pool.calls(index))
        return self._brief_elsewhere(given, actor, self._door, strange)

    def _brief_elsewhere(self, given: Given, actor: Actor, door: Door, strange: bool) -> Bundle:
        entries = [] if strange else [self._pool.entries[number] for number in given.tickets]
        if not door.trusted:
            return self._plain_brief(entries, actor)
        if "code" not in actor.offers:
            self._soon(actor, UNTRUSTING)
            return pack_calls(())
        calls = self._pool.calls_of(entries)
        its = [one.plain or whole(one.arguments.data) for one in entries]
        return pack_calls(
            [one._replace(function=whole(one.function), arguments=args) for one, args in zip(calls, its, strict=True)]
        )

    def _plain_brief(self, entries: Sequence[Entry], actor: Actor) -> Bundle:
        puts = {put.name: put for one in entries for put in one.apart}
        if puts and "puts" not in actor.offers:
            self._soon(actor, OLDER)
            return plaincalls.pack_brief(())
        self._puts.update(puts)
        told = []
        for part in self._shelves.parts(actor.session, _place(actor), puts, self._puts, time.monotonic()):
            data = puts[part.name].plain if part.how == "bytes" else None
            told.append(plaincalls.Told(part.how, part.name, data, part.handle))
        return plaincalls.pack_brief(((one.ticket.number, one.plain) for one in entries), told)

    def _found(self, actor: Actor | None, bundle: Bundle) -> None:
        """Take in which values an actor did not find. Raises ProtocolError if it was sent the bytes of one."""
        for name in plaincalls.read_lacks(bundle) if actor else ():
            if actor and not self._shelves.lacks(actor.session, _place(actor), name):
                raise ProtocolError("it lacks a value that it was sent")

    def _took(self, index: int, bundle: Bundle) -> None:
        """Take the answers of a task. Raises ProtocolError for bytes from elsewhere that are none."""
        if not self._pool.plan.given[index].far:
            self._pool.done(index, read_answers(bundle))
            return
        plain = not (self._door and self._door.trusted)
        actor = self.core.facts.roster.actors.get(self._pool.plan.given[index].session)
        if not plain and actor is not None and "code" not in actor.offers:  # it was given no call, and is being dismissed
            raise ProtocolError(f"{REFUSED}: it did not say --trust-code")
        try:
            if plain:
                self._found(actor, bundle)
            answers = plaincalls.read_answers(bundle) if plain else read_answers(bundle)
            parcels = [pack(plaincalls.result_of(one)) for one in answers] if plain else []  # kept until they are opened
        except (ValueError, TypeError) as wrong:
            raise ProtocolError(f"{REFUSED}: {wrong}") from wrong
        if plain:
            answers = [one._replace(parcel=its.data) for one, its in zip(answers, parcels, strict=True)]
        self._pool.done(index, answers)

    # Ends

    def lease(self, index: int) -> Lease | None:
        return self.core.facts.ledger.leases.get((0, index))

    def _at(self, index: int) -> Actor | None:
        """The actor that has a task; None if none has it."""
        lease = self.lease(index)
        return self.core.facts.roster.actors.get(lease.session) if lease else None

    def withdraw(self, index: int, lease: Lease | None) -> None:
        """End the process that has a task which nobody wants any more."""
        self.server.handle(Withdraw((0, index)))
        actor = self.core.facts.roster.actors.get(lease.session) if lease else None
        if actor is not None and not self.ours(actor):
            self._dismiss(actor.session, KILLED)

    def renew(self, index: int) -> None:
        """End the process that did this task, which another replaces."""
        actor = self._at(index)
        if actor is not None and not self.ours(actor):
            self._soon(actor, KILLED)
        elif actor is not None and self._crew:
            self._crew.evict([pid for pid, its in self.server.traffic.pids.items() if its == actor.peer])

    def dismiss(self, many: int) -> list[int]:
        """Let at most so many actors of this program leave that have no task. Returns their process ids."""
        pids = {peer: pid for pid, peer in self.server.traffic.pids.items()}
        idle = [one for one in self.actors() if self.ours(one) and not one.tasks and one.peer in pids][:many]
        gone = [pids[one.peer] for one in idle]
        for one in idle:
            self._dismiss(one.session, FEWER)
        return gone

    def _soon(self, actor: Actor, why: str) -> None:
        """Dismiss an actor when this turn is over."""
        act: Callable[[], None] = partial(self._dismiss, actor.session, why)
        self._pool.soon(act)

    def _dismiss(self, session: bytes, why: str) -> None:
        self.server.handle(Dismiss(session, why))

    def _ran(self, pid: int) -> tuple[int, ...]:
        """(version, index, attempt) of the task that a process began last; the plan learns which of its tickets that was."""
        ran = self._pool.marks.ran(pid)
        if not ran:
            return ()
        version, index, number = ran
        if given := self._pool.plan.given.get(index):
            given.blamed = number
        lease = self.core.facts.ledger.leases.get((version, index))
        return (version, index, lease.attempt if lease else -1)


def _place(actor: Actor) -> Place:
    """The machine of an actor as far as one actor is believed about another: those of one key alone share memory."""
    return actor.host, actor.user

"""The invariants, asserted after every event of a coordinator, from the event and its effects.

The one idea: the audit keeps books of its own from events and effects alone, and compares; only invariants without outward sign
(indices that must agree with each other and must not grow) are looked up in the core, every LOOK events.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.events import (
    Admit,
    Brief,
    Briefed,
    Carried,
    Effect,
    Event,
    Finish,
    Fold,
    Folded,
    Gone,
    Heard,
    Kept,
    Lost,
    Outdated,
    Pull,
    Pulse,
    Send,
    SendTask,
    SendWeights,
    Step,
    Stepped,
    Tick,
    Unfit,
    Unpull,
)
from shoal.coordinator.deciding.ledger import TRIES
from shoal.coordinator.deciding.promises import Promise
from shoal.coordinator.reports import Report
from shoal.protocol.messages import (
    PROTOCOL,
    Assign,
    Beat,
    Cancel,
    Contribute,
    Failed,
    Have,
    Hello,
    Refused,
    Stop,
    TaskName,
    Verdict,
)
from shoal.protocol.work import Task, Totals, Words
from shoal.simulation.books import Books, Holding, Taken, wrong
from shoal.simulation.look import held, look, punctual
from shoal.simulation.setting import Setting

if TYPE_CHECKING:
    from shoal.simulation.actors import Product
    from shoal.simulation.hub import Hub

LOOK = 64  # events between two looks at the core's own indices
OFTEN = 4  # events that are ticks and acted on are followed by a look at lateness, one in so many
SHELL = 16  # events between two looks at the shell
MANY = 64  # arrays being fetched, from which only every LOOK events is looked whose they are
FINAL = ("accepted", "stale", "aside")
OF_WORK, OF_MORE = (Contribute, Failed), (Have, Beat)


@dataclass(slots=True)
class Row:
    """A life of an actor at one life of the coordinator. actor: the core's own object, whose identity tells lives apart."""

    actor: Actor
    peer: bytes
    tasks: set[TaskName] = field(default_factory=set)
    sent: int = -1
    held: int = -1
    under_way: bool = False
    greeting: int = 0
    spoke: bool = False
    stuck: bool = False
    runs: tuple[int, ...] = ()  # task and attempt that its last Beat named, unless its result came since
    free_at: float = -math.inf  # time when a result of a task that it was given came last
    dropped: deque[tuple[int, ...]] = field(default_factory=lambda: deque(maxlen=8))  # tasks and attempts taken back from it
    away: bool = False
    mute: bool = False  # nothing comes over its connection
    barred: bool = False
    settled: bool = False  # the actor has sent a Have or Beat since its welcome, and so has offered all its work
    heard_at: float = 0.0
    evaluates: bool = False  # it does evaluations alone
    briefed: set[int] = field(default_factory=set)  # clients of which it was told a task whose brief was made

    @property
    def able(self) -> bool:
        """Return whether the actor can be given tasks."""
        return not (self.stuck or self.away or self.barred or self.mute)


class Audit:
    """The audit of one run, over all lives of its coordinator."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.books = Books(setting)
        self.served: set[bytes] = set()  # sessions whose work was judged on its merits since the faults ended
        self.peak = 0
        self.events = 0
        self._before: Mapping[type[Any], Callable[[Any], None]] = {
            Heard: self._hear,
            Carried: self._moved,
            Outdated: self._outdated,
            Pulse: self._pulse,
            Folded: self._folded,
            Unfit: self._unfit,
            Briefed: self._briefed,
            Stepped: self._stepped,
            Kept: self._kept,
        }
        self._after: Mapping[type[Any], Callable[[Any], None]] = {
            Send: self._send,
            SendTask: self._send,
            Brief: self._brief,
            SendWeights: self._weights,
            Admit: self._admit,
            Pull: self._pull,
            Unpull: self._unpull,
            Fold: self._fold,
            Step: self._step,
            Report: self._report,
            Gone: self._gone,
            Finish: self._finish,
        }

    def begin(self, hub: Hub) -> None:
        """Begin the books of a new life of the coordinator."""
        self.books.begin(hub)
        self.hub, self.core, self.plan = hub, hub.core, hub.plan
        self.counted: dict[TaskName, Taken] = {}
        self.rows: dict[bytes, Row] = {}
        self.held: dict[TaskName, Holding] = {
            one.task.name: Holding(
                one.session, one.attempt, one.clients, _told(one.task), self.core.facts.now, owed=self._owed(one)
            )
            for one in hub.found.promises
        }
        self.tries: dict[TaskName, int] = {}
        self.faults: dict[TaskName, int] = {}  # times that a task failed, or was blamed for a death
        self.blamed: set[TaskName] = set()  # tasks on which a death was blamed, and which have not been given out since
        self.folding: dict[TaskName, Taken] = {}
        self.pulled: dict[TaskName, Holding] = {}
        self.took: dict[str, deque[float]] = {}  # kind -> seconds of work at its last tasks that came in
        self.changes = False
        self.heard = self.accepted = 0
        self.stops: set[bytes] = set()
        self.leaving: set[bytes] = set()  # sessions that are gone, of which the shell is about to hear
        self.due: deque[tuple[TaskName, str]] = deque()  # tasks and their outcomes that the plan has to hear
        self.final: set[TaskName] = set()  # tasks of which the plan heard that they are over
        self.promised_at = (-1, 0.0)
        self._round(self.core.facts.version)
        self.over = False
        self.acted, self.looked_at = False, self.core.look_at  # acted: the last event was a Tick that the core acted on

    def _owed(self, promise: Promise) -> Taken:
        """The contribution that the core is promised; its acknowledgement need not have been sent."""
        if owed := self.books.owed.get((promise.task.name, promise.attempt)):
            return owed
        of_it = [
            one for one in self.books.taken.values() if (one.task, one.holding.attempt) == (promise.task.name, promise.attempt)
        ]
        if not of_it:
            wrong(f"{promise} is of nothing")
        return of_it[-1]

    def anything(self, rng: Random) -> tuple[TaskName, int, int]:
        """A task that an actor has, or had; its attempt; and the newest version: for a liar to claim."""
        tasks = [*self.held, *list(self.counted)[-5:]]
        task = rng.choice(tasks) if tasks else (0, 0)
        return task, self._attempt(task), self.core.facts.version

    def _attempt(self, task: TaskName) -> int:
        return self.core.facts.epoch * TRIES + self.tries.get(task, 0)

    # One event

    def saw(self, event: Event, effects: Sequence[Effect], product: Product | None) -> None:
        """Check an event and its effects: called after the core took the event, before its effects are carried out."""
        if self.over:
            if not all(isinstance(one, Send) and isinstance(one.envelope.message, Stop) for one in effects):
                wrong(f"{effects} after the end")
            return
        if effects or type(event) is not Tick:
            self._compare(event, effects, product)
        if self.plan.asked:
            self._heard()
        counts = self.core.facts.ledger.counts
        heard, accepted, folding = counts.heard, counts.accepted, counts.folding
        if heard != self.heard or accepted != self.accepted or folding != len(self.folding):
            books = f"{self.heard} heard, {self.accepted} accepted, {len(self.folding)} with the learner"
            wrong(f"in the books {books}; in the core {counts}")
        self.events += 1
        self.acted, self.looked_at = self.core.look_at != self.looked_at, self.core.look_at
        if self.events % LOOK == 0 and not self.over:
            look(self)
        if self.acted and self.events % OFTEN == 0 and not self.over:
            punctual(self)

    def settled(self, hub: Hub) -> None:
        """Check the shell every SHELL events, LOOK if much is on its way: called after all effects of one were carried out."""
        if self.events % (SHELL if len(hub.traffic.deliveries) < MANY else LOOK) == 0 and not self.over:
            held(hub)

    def _compare(self, event: Event, effects: Sequence[Effect], product: Product | None) -> None:
        self.event, self.product, self.answers, self.expected = event, product, 0, 0
        self.pulls = self.changes = False  # whether a fetch begins; whether a fetch begins or ends
        self.parted: set[bytes] = set()  # sessions that are gone, of which the core has told nobody yet
        self.leaving.clear()
        for effect in effects:
            if type(effect) is Pull:
                self.pulls = self.changes = True
            elif type(effect) is Unpull:
                self.changes = True
        if before := self._before.get(type(event)):
            before(event)
        for effect in effects:
            if type(effect) is Report and effect.kind == "lost":
                self._blame(effect.text)
        for effect in effects:
            if after := self._after.get(type(effect)):
                after(effect)
        if self.answers != self.expected and not self.over:
            wrong(f"{self.answers} answers to {event}")
        if self.parted:
            wrong(f"nobody hears that {self.parted} are gone, after {event}")
        often = len(self.pulled) < MANY or self.events % LOOK == 0  # a restart may have thousands to fetch
        for task, holding in self.pulled.items() if often else ():
            if self.held.get(task) is not holding and not self.over:
                wrong(f"arrays are fetched for what is nobody's, after {event}")

    def _heard(self) -> None:
        """Check that the plan, which was asked for tasks, has heard the outcome of every other task, once."""
        plan = self.plan
        heard, plan.heard, plan.asked = plan.heard, [], False
        for task, word, _, totals in heard:
            name = (task.version, task.index)
            if self.due and self.due[0] == (name, word):
                self.due.popleft()
                self._said_so(name, word, totals)
            elif word != "stale" or name in self.held or task.version >= self.core.facts.version:  # else it waited for a redo
                wrong(f"the plan hears that {task} is {word}, and {list(self.due)[:3]} is what became of others")
            if word in FINAL and name in self.final:
                wrong(f"the plan hears that {task} is {word}, which was over")
            self.final.update([name] if word in FINAL else [])
        if self.due:
            wrong(f"the plan does not hear that {self.due[0]}")

    def _said_so(self, name: TaskName, word: str, totals: Totals) -> None:
        product = self.counted[name].product if word == "accepted" else None
        if product and product.honest and totals != {"number": (product.number, 1.0)}:
            wrong(f"the plan hears of task {name}, made of {product}, with {totals}")

    def _folded(self, event: Folded) -> None:
        taken = self.counted[event.task] = self.folding.pop(event.task)
        self.accepted += 1
        self.due.append((event.task, "accepted"))
        self.served.add(taken.holding.session)
        if taken.holding.counts:
            self.books.paid(taken)
            self.books.count(taken)
        self._end(taken.task, taken.holding)

    def _stepped(self, event: Stepped) -> None:
        self.books.stepped(event)
        self._round(event.version)
        if self.setting.bounds.retain and any(self.core.facts.kept < version < event.version for version in self._snapshots()):
            wrong(f"versions {self._snapshots()} are in snapshots, and the core was told of version {self.core.facts.kept}")

    def _kept(self, event: Kept) -> None:
        if event.version not in self._snapshots():
            wrong(f"{event}, and versions {self._snapshots()} are in snapshots")

    def _snapshots(self) -> list[int]:
        return [snapshot.version for snapshot in self.hub.world.disk.shelf.kept]

    def _round(self, version: int) -> None:
        """Note the beginning of a round for which work is promised: it may begin without a task of the plan."""
        if any(holding.owed for holding in self.held.values()):
            self.promised_at = version, self.core.facts.now

    def _step(self, effect: Step) -> None:
        version, at = self.promised_at
        began = at if version == self.core.facts.version else self.plan.began
        self.books.step(effect, self.folding.values(), self.core.facts.now - began)

    def _unfit(self, event: Unfit) -> None:
        self.due.append((event.task, "refused"))
        holding = self.folding.pop(event.task).holding
        if not holding.owed:
            self._fault(event.task, holding)
        self._end(event.task, holding)

    def _hear(self, event: Heard) -> None:
        envelope = event.envelope
        row = self.rows.get(envelope.session)
        if row is not None and (row.peer != event.peer or envelope.epoch != self.core.facts.epoch):
            row = None
        self.expected = self._expected(event, row)
        if row is None:
            return
        message = envelope.message
        if not isinstance(message, Hello):  # which is a sign of life if it is answered
            row.heard_at, row.mute = self.core.facts.now, False
        if isinstance(message, Have) and message.version == row.sent and row.under_way:
            row.under_way, row.held = False, message.version
        for task in row.tasks if isinstance(message, Have) else ():
            if not (holding := self.held[task]).ready and task[0] <= row.held:
                holding.ready, holding.since = True, self.core.facts.now
        if isinstance(message, OF_WORK):
            self._result(row, message)
        elif isinstance(message, Beat):
            row.runs = message.runs
        if isinstance(message, Beat):
            self._begun(row, message)
        row.settled = row.settled or isinstance(message, OF_MORE)
        row.spoke = row.spoke or not isinstance(message, Hello)
        self.heard += isinstance(message, Contribute) and not self._goes_on(event)

    def _begun(self, row: Row, message: Beat) -> None:
        """Note what a Beat says of the worker: it is at no task, or at one, whose brief has arrived then."""
        if not message.runs:
            row.stuck = False
            return
        holding = self.held.get(task := (message.runs[0], message.runs[1]))
        mine = holding is not None and (*task, holding.attempt) == message.runs and task in row.tasks
        if holding and mine and self.setting.bounds.briefs and task not in self.pulled:
            holding.left = 0

    def _result(self, row: Row, message: Contribute | Failed) -> None:
        """Note that the worker is free for its next task, if this is the first word of a result of a task that it was given."""
        what, task = (*message.task, message.attempt), message.task
        row.runs = () if row.runs == what else row.runs
        holding = self.held.get(task)
        mine = holding is not None and (holding.session, holding.attempt) == (row.actor.session, message.attempt)
        if holding and mine and not holding.briefing:
            if task in self.folding or task in self.pulled or holding.owed:
                return
            holding.took = self.core.facts.now - max(holding.since, row.free_at)
        elif what in row.dropped:
            row.dropped.remove(what)
        else:
            return
        row.free_at, row.stuck = self.core.facts.now, False

    def limit(self, kind: str) -> float:
        """The longest time of a task of this kind; 0: no limit."""
        bounds, took = self.setting.bounds, self.took.get(kind, ())
        if bounds.lease >= 0:
            return bounds.lease
        return max(bounds.floor, 10 * median(took)) if len(took) >= 3 else bounds.first

    def at_it(self, row: Row) -> TaskName | None:
        """The task that an actor's worker is at, as far as the coordinator can know: the task that its Beat named, or the first
        of those that it can have begun. None: it is at none of its tasks."""
        begun = [task for task in sorted(row.tasks) if task not in self.folding and task not in self.pulled]
        begun = [task for task in begun if not ((one := self.held[task]).briefing or one.owed or one.left)]
        begun = [task for task in begun if task[0] <= row.held and not row.stuck]
        if row.runs:
            return next((task for task in begun if (*task, self.held[task].attempt) == row.runs), None)
        return min(begun, key=lambda task: self.held[task].since, default=None)

    def _goes_on(self, event: Heard) -> bool:
        """Return whether the event is a contribution whose arrays are on their way, or with the learner already."""
        message = event.envelope.message
        if event.whole or not isinstance(message, Contribute):
            return False
        return self.pulls or self._with_learner(event, message) or self._to_come(event, message)

    def _to_come(self, event: Heard, message: Contribute) -> bool:
        """Return whether the contribution is promised, and its version still to come."""
        lease = self.core.facts.ledger.leases.get(message.task)
        return lease is not None and lease.offered == message and lease.session == event.envelope.session

    def _with_learner(self, event: Heard, message: Contribute) -> bool:
        taken, row = self.folding.get(message.task), self.rows[event.envelope.session]
        return taken is not None and (taken.actor.session, taken.holding.attempt) == (row.actor.session, message.attempt)

    def _moved(self, event: Carried) -> None:
        if row := self.rows.get(event.session):
            row.heard_at, row.mute = self.core.facts.now, False
        holding = self.held.get(event.task) if event.task else None
        if holding and holding.handout and event.left < holding.left and event.task not in self.pulled:
            holding.left, holding.since = event.left, self.core.facts.now

    def _pulse(self, event: Pulse) -> None:
        for row in self.rows.values():
            if row.peer == event.peer and not row.away:
                row.mute = min(event.silent, self.core.facts.now - row.heard_at) >= self.setting.bounds.hush

    # Briefs

    def _brief(self, effect: Brief) -> None:
        name = (effect.task.version, effect.task.index)
        session = self.core.facts.ledger.leases[name].session
        self._given(self.rows[session], session, name, effect.attempt, effect.task.clients, _told(effect.task))
        self.held[name].briefing = True

    def _briefed(self, event: Briefed) -> None:
        """Note a brief; only the actor that still has the task and attempt is told of it."""
        holding = self.held.get(event.task)
        if holding and holding.attempt == event.attempt:
            holding.handout, holding.left = (event.arrays.what, event.arrays.nbytes) if event.arrays else (None, 0)
            holding.briefing, holding.since = False, self.core.facts.now

    def _outdated(self, event: Outdated) -> None:
        row = self.rows.get(event.session)
        if row is not None and row.under_way and row.sent == event.version and not row.away:
            row.under_way, row.sent = False, row.held

    def _expected(self, event: Heard, row: Row | None) -> int:
        """The number of answers to the message: 1; 0 if it asks nothing, or if the answer is on its way with the learner."""
        message = event.envelope.message
        if isinstance(message, Hello):
            return int(not self._late(event.envelope.session, message))
        if row is None or isinstance(message, Failed):
            return 1
        if not isinstance(message, Contribute):
            return 0
        return int(not self._with_learner(event, message) and not self._goes_on(event))

    def _late(self, session: bytes, hello: Hello) -> bool:
        """Return whether this Hello was answered before, and its sender has said more since."""
        row, same = self.rows.get(session), hello.protocol >> 8 == PROTOCOL >> 8
        return same and row is not None and (hello.greeting, not row.spoke) < (row.greeting, True)

    # What the core said

    def _send(self, effect: Send | SendTask) -> None:
        envelope = effect.envelope
        message = envelope.message
        if envelope.epoch != self.core.facts.epoch:
            wrong(f"epoch {envelope.epoch} in {envelope}")
        if isinstance(message, Refused):
            self._refused(effect)
            return
        row = self.rows.get(envelope.session)
        if row is None or row.peer != effect.peer:
            wrong(f"{message} goes to a peer that has not joined")
        match message:
            case Assign():
                self._assign(row, envelope.session, message)
            case Verdict():
                self._verdict(row, envelope.session, message)
            case Stop():
                self.stops.add(envelope.session)
            case Cancel():
                self._cancel(row, envelope.session, message.task)

    def _refused(self, effect: Send | SendTask) -> None:
        if not isinstance(self.event, Heard) or effect.peer != self.event.peer:
            wrong("a refusal to somebody who said nothing")
        self.answers += 1

    def _only_own(self, session: bytes) -> None:
        if isinstance(self.event, Heard) and self.event.envelope.session != session:
            wrong(f"{self.event.envelope.message} changed what is another actor's")

    def _assign(self, row: Row, session: bytes, message: Assign) -> None:
        task = message.task
        if isinstance(self.event, Heard) and isinstance(self.event.envelope.message, Hello) and task in row.tasks:
            holding = self.held[task]  # told again to an actor that came back
            if (holding.session, holding.attempt, holding.clients, holding.told) != (
                session,
                message.attempt,
                message.clients,
                _told(message),
            ):
                wrong(f"{message} is told to one who has {holding}")
            row.briefed.update(message.clients)
            return
        if isinstance(self.event, Briefed) and task == self.event.task:
            holding = self.held[task]
            if (holding.session, holding.attempt, holding.clients) != (session, message.attempt, message.clients):
                wrong(f"{message} is told to one who has {holding}")
            if bool(message.brief) != (holding.handout is not None):
                wrong(f"{message} goes out with brief {holding.handout}")
            row.briefed.update(message.clients)
            return
        knows = self.setting.bounds.brief_once and (not message.counts or row.briefed.issuperset(message.clients))
        if self.setting.bounds.briefs and not knows:
            wrong(f"{message} goes out before its brief is made")
        self._given(row, session, task, message.attempt, message.clients, _told(message))

    def _given(
        self, row: Row, session: bytes, task: TaskName, attempt: int, clients: tuple[int, ...], told: tuple[str, bool, Words]
    ) -> None:
        if told != self.setting.schedule.told(task[0], told[1]):
            wrong(f"task {task}, {told}, is not what the plan said")
        if task in self.held:
            wrong(f"task {task} is given out while {self.held[task]} has it")
        if task in self.counted:
            wrong(f"task {task} is given out, and was counted")
        tries = self.tries.get(task, 0) + 1
        for part in range(len(clients)):  # the task may come back in parts, of one client each
            self.tries[(task[0], task[1] + part)] = tries
        if attempt != self._attempt(task) or self.faults.get(task, 0) >= self.setting.bounds.attempts:
            wrong(f"task {task} is given out with attempt {attempt}, for the {tries}. time")
        beside = [self.held[one] for one in row.tasks if one not in self.folding | self.pulled.keys()]
        alone = task in self.blamed
        self.blamed.discard(task)
        if (alone and beside) or any(one.alone for one in beside):
            wrong(f"task {task} goes to an actor that has {beside}, and one of them is to be tried alone")
        late = task[0] != self.core.facts.version if not self.setting.schedule.streams else task[0] > self.core.facts.version
        if late:
            wrong(f"task {task} is given out at version {self.core.facts.version}")
        if row.evaluates and told[1]:
            wrong(f"task {task}, which is training, goes to an evaluator")
        failed = self.faults.get(task, 0) > 0  # then an evaluation is for who trains
        if not (told[1] or row.evaluates or failed) and any(one.evaluates and one.able for one in self.rows.values()):
            wrong(f"task {task}, an evaluation, goes to an actor that trains, and an evaluator is here")
        if failed and row.evaluates and not all(one.evaluates for one in self.rows.values()):
            wrong(f"task {task}, which failed, goes to an evaluator, and an actor that trains is here")
        ready = task[0] <= row.held
        self.held[task] = Holding(session, attempt, clients, told, self.core.facts.now, alone=alone, ready=ready)
        row.tasks.add(task)
        if row.stuck or row.mute:
            wrong(f"task {task} goes to an actor that hangs, or of which nothing comes")
        takes = row.actor.capacity if row.actor.alone is None else math.inf  # it may have had them before
        if len(row.tasks) > takes:
            wrong(f"{len(row.tasks)} tasks at an actor that takes {row.actor.capacity}")
        if len(row.tasks - self.folding.keys()) > self.setting.most:
            wrong(f"{row.tasks} are at an actor at once, {self.folding.keys()} are with the learner, of {self.setting.most}")

    def _cancel(self, row: Row, session: bytes, task: TaskName) -> None:
        self._only_own(session)
        if isinstance(self.event, Stepped):
            self.due.append((task, "stale"))
        holding = self.held.get(task)
        if holding is None or holding.session != session:
            wrong(f"task {task} is taken from one that does not have it")
        if holding.owed:
            self._recalled(task, holding)
        if isinstance(self.event, Tick) and not holding.owed:
            self._overdue(row, task, holding)
        row.dropped.append((*task, holding.attempt))
        self._end(task, holding)

    def _overdue(self, row: Row, task: TaskName, holding: Holding) -> None:
        """Check that a task is taken back because its own time is up, or because its actor hangs in another; a fault only of
        the task that the worker is at."""
        took, limit = self.core.facts.now - max(holding.since, row.free_at), self.limit(holding.told[0])
        at = self.at_it(row)
        if not row.stuck and (at not in (None, task) or not took > limit > 0):
            wrong(f"task {task} is late after {took} s of {limit} s, and its actor is at {at}")
        if at == task:
            self._fault(task, holding)
        elif holding.alone:
            self.blamed.add(task)  # it is still to be tried alone
        row.stuck = row.stuck or (task[0] <= row.held and not holding.left)

    def _verdict(self, row: Row, session: bytes, message: Verdict) -> None:
        self._only_own(session)
        s = self.setting.schedule
        if message.verdict == "stale" and (s.streams or s.deadline or s.spare):
            self.served.add(session)  # the actor is too slow for this run, which is no fault
        self.answers += isinstance(self.event, Heard)
        counted = self.counted.get(message.task)
        its = counted is not None and (counted.holding.session, counted.holding.attempt) == (session, message.attempt)
        if message.verdict == "accepted" and not its:
            wrong(f"{message} was not counted")
        if message.verdict != "accepted" and its and counted is not None and self._remembered(row, counted):
            wrong(f"{message} was counted")
        holding = self.held.get(message.task)
        taken = self.folding.get(message.task)
        if holding and (holding.session, holding.attempt) == (session, message.attempt) and not taken and not holding.briefing:
            owed = holding.owed.product if holding.owed else None
            if owed and owed.honest and message.verdict != "accepted" and not self._made_again(owed):
                wrong(f"{message}, of what was acknowledged")
            said = self.event.envelope.message if isinstance(self.event, Heard) else None
            if message.verdict == "stale" and isinstance(said, Contribute) and said.made_from < message.task[0]:
                wrong(f"{message}, of what cannot have been made for its task, which nobody does again")
            failed = isinstance(said, Failed)
            self.due.append((message.task, "failed" if failed else message.verdict))
            if message.verdict == "refused" and not holding.owed:
                self._fault(message.task, holding)
            self._end(message.task, holding)

    def _remembered(self, row: Row, counted: Taken) -> bool:
        """Return whether the core must remember this verdict, of a bounded number: for an honest actor that repeats an
        unanswered contribution, if messages keep order."""
        said_again = counted.product is not None and counted.product.honest and not self.setting.weather.wild
        return said_again and counted.actor is row.actor

    def _blame(self, text: str) -> None:
        """Take the report of a loss, which may name the task that the lost actor ran."""
        named = [row for row in self.rows.values() if text.startswith(f"{row.actor.name} ")]
        known = any(row.away or row.mute for row in named)
        if " silent for " in text and " in task " in text and self.setting.bounds.watched and not known:
            wrong(f"{text}, and its connection lives")
        soon = self.core.facts.now - self.setting.bounds.away_for(len(self.rows))
        parted = [row for s, row in self.rows.items() if self.core.facts.roster.actors.get(s) is not row.actor]
        if " silent for " in text and any(row.mute and row.actor.tasks and row.heard_at > soon for row in parted):
            wrong(f"{text}, and its link may be cut for as long")
        if isinstance(self.event, Lost) and not self.event.dead and any(row.mute and row.actor.tasks for row in parted):
            wrong(f"{text}, after a silence in which its link may have been cut")
        if ran := re.search(r"in task \((\d+), (\d+)\);", text):
            task = (int(ran[1]), int(ran[2]))
            holding = self.held.get(task)
            row = self.rows.get(holding.session) if holding else None
            if holding is None or row is None or task in self.folding or row.stuck or task[0] > row.held:
                wrong(f"{text}, which its worker had not begun")
            self._fault(task, holding, blamed=True)

    def _fault(self, task: TaskName, holding: Holding, blamed: bool = False) -> None:
        """Count a fault of a task, or of each part that comes back of it. blamed: it is to blame for a death."""
        faults = self.faults.get(task, 0) + 1
        for part in range(len(holding.clients)):
            self.faults[task[0], task[1] + part] = faults
            self.blamed |= {(task[0], task[1] + part)} if blamed else set()

    def _end(self, task: TaskName, holding: Holding) -> None:
        """End a holding: no actor has the task any more."""
        self.held.pop(task, None)
        if holding.owed:
            self.books.owed.pop((task, holding.attempt), None)
        if row := self.rows.get(holding.session):
            row.tasks.discard(task)

    def _weights(self, effect: SendWeights) -> None:
        row = self.rows.get(effect.session)
        if row is None or row.peer != effect.peer:
            wrong("weights go to a peer that has not joined")
        if row.under_way:
            wrong(f"version {effect.version} is queued behind version {row.sent}")
        if effect.version != self.core.facts.version or effect.version != self.hub.published[0] or effect.version <= row.sent:
            wrong(f"version {effect.version} goes out at version {self.hub.published[0]}, after {row.sent}")
        shown = self.books.shown
        if effect.same != (shown.get(effect.held) == shown[effect.version]):
            wrong(f"{effect}, of weights {shown}")
        row.sent, row.under_way = effect.version, True

    def _admit(self, effect: Admit) -> None:
        self.answers += 1
        actor = self.core.facts.roster.actors[effect.session]
        row = self.rows.get(effect.session)
        if actor.peer != effect.peer:
            wrong(f"{effect.hello} is answered to a connection that is not the actor's")
        if effect.resumed:
            if row is None or row.actor is not actor or effect.hello.epoch != self.core.facts.epoch:
                wrong(f"{effect.hello} resumes a place that it never had")
            row.peer, row.under_way, row.away, row.heard_at = effect.peer, False, False, self.core.facts.now
            row.mute = False
            row.sent = row.held = effect.hello.held if -1 <= effect.hello.held <= row.sent else -1
            row.greeting, row.spoke, row.stuck = effect.hello.greeting, False, row.stuck and effect.hello.busy
            row.settled = False
            for task in row.tasks if not effect.hello.busy else ():
                if (handout := self.held[task].handout) and task not in self.pulled:
                    self.held[task].left = handout.memory.nbytes
            return
        if row is not None and row.actor is actor and (row.spoke or row.greeting != effect.hello.greeting):
            wrong(f"{effect.hello} comes from one that starts over, and is taken for a repeat")
        if row is None or row.actor is not actor:
            row = self.rows[effect.session] = Row(actor, effect.peer, greeting=effect.hello.greeting)
            self.peak = max(self.peak, len(self.rows))
        row.heard_at = self.core.facts.now
        row.evaluates = effect.hello.evaluates
        numbers = [row.actor.number for row in self.rows.values() if not row.evaluates]
        if len({*numbers}) < len(numbers) or effect.number >= self.peak or (effect.number < 0) != row.evaluates:
            wrong(f"{len(self.rows)} actors have numbers {numbers}, without evaluators; the newest has {effect.number}")

    def _report(self, report: Report) -> None:
        if report.kind == "aside":
            self.books.aside += 1
            version, index = map(int, re.findall(r"\d+", report.text)[:2])
            self.due.append(((version, index), "aside"))
            if self.faults.get((version, index), 0) < self.setting.bounds.attempts:
                wrong(f"{report.text}, and it failed {self.faults.get((version, index), 0)} times")
        if report.kind == "away":
            for row in self.rows.values():
                left = row.actor.away and not (row.away or row.mute)
                row.heard_at = self.core.facts.now if left else row.heard_at
                row.away = row.actor.away
        if report.kind == "quarantine":
            for row in self.rows.values():
                row.barred = row.actor.barred_until > 0
        if report.kind == "recall":
            for task in [task for task, one in self.held.items() if one.owed and report.text.startswith(f"task {task},")]:
                self._recalled(task, self.held[task])
                self._end(task, self.held[task])
        if report.kind == "lost":
            for session, row in list(self.rows.items()):
                if self.core.facts.roster.actors.get(session) is not row.actor:
                    self._part(session, row)

    def _gone(self, effect: Gone) -> None:
        if effect.session not in self.parted:
            wrong(f"{effect}, who is here")
        self.parted.remove(effect.session)
        self.leaving.add(effect.session)

    def _made_again(self, owed: Product) -> bool:
        """Return whether the actor made anew the work that it had no room to keep, for an order that came twice (wild
        weather)."""
        offered = self.event.envelope.message if isinstance(self.event, Heard) else None
        other = isinstance(offered, Contribute) and offered.digest != owed.bundle.sha256()
        return other and self.setting.weather.wild and not self.setting.keeps

    def _recalled(self, task: TaskName, holding: Holding) -> None:
        """Check that acknowledged work is done again only if no actor that is here, and has offered all its work, had it."""
        owed = self.books.owed.get((task, holding.attempt))  # None: given up before, and its actor may have done it again
        row = self.rows.get(owed.holding.session) if owed else None
        honest = owed is not None and owed.product is not None and owed.product.honest
        here = row is not None and row.settled and not row.away
        if isinstance(self.event, Tick) and honest and here and self.setting.keeps and not self.setting.weather.wild:
            wrong(f"task {task} was acknowledged and is asked of others, and its actor is here")

    def _part(self, session: bytes, row: Row) -> None:
        if isinstance(self.event, Heard) and session != self.event.envelope.session and row.peer != self.event.peer:
            wrong(f"{self.event.envelope.message} put another actor out")
        del self.rows[session]
        self.parted.add(session)
        for task in row.tasks:
            if task not in self.folding and not self.held[task].owed:
                self.held.pop(task, None)

    def _finish(self, effect: Finish) -> None:
        self.over = True
        if self.stops != self.rows.keys():
            wrong(f"{len(self.stops)} of {len(self.rows)} actors are told to stop")
        if effect.reason == "done" and not self.setting.goal.reached(self.books.published, self.books.steps):
            wrong(f"done at version {self.books.published} and {self.books.steps} steps, for {self.setting.goal}")
        kept = self._snapshots()
        if isinstance(self.event, Stepped) and effect.reason == "done" and self.books.published not in kept:
            wrong(f"actors are told to leave after version {self.books.published}, and versions {kept} are in snapshots")

    # What is folded in

    def _pull(self, effect: Pull) -> None:
        message = effect.message
        holding = self.held.get(message.task)
        if holding is None or (holding.session, holding.attempt) != (effect.session, message.attempt):
            wrong(f"{effect} is of a task that {holding} has")
        self.pulled[message.task] = holding

    def _unpull(self, effect: Unpull) -> None:
        if self.pulled.pop(effect.task, None) is None:
            wrong(f"{effect}, which was never fetched")

    def _fold(self, effect: Fold) -> None:
        message, event, product = effect.message, self.event, self.product
        task = message.task
        holding = self.held.get(task)
        if not isinstance(event, Heard) or holding is None or task in self.folding:
            wrong(f"task {task} goes to the learner, and is nobody's or there already")
        row = self.rows[event.envelope.session]
        if (holding.session, holding.attempt) != (event.envelope.session, message.attempt) or row.peer != event.peer:
            wrong(f"{message} is of a task that {holding} has")
        if effect.promised != (holding.owed is not None):
            wrong(f"{effect} is of {holding}")
        if not holding.owed and not task[0] <= message.made_from <= row.sent:
            wrong(f"{message} was made from what its actor was not sent for it")
        sound = 0 < message.weight < math.inf and 0 <= message.steps < 2**53
        if event.fault or not sound or not all(0 <= count < math.inf for _, count in message.totals.values()):
            wrong(f"{message} goes to the learner")
        if effect.clients != holding.clients or _told(effect.task) != holding.told:
            wrong(f"{effect} is of {holding}")
        if holding.counts:
            self.books.fits(effect, product, holding.handout)
        if row.evaluates and (holding.counts or message.layout):
            wrong(f"an evaluator's {message} goes to the learner")
        self.answers += 1
        if not event.whole:
            wrong(f"{message} goes to the learner without its arrays")
        self.pulled.pop(task, None)
        if holding.took >= 0:
            self.took.setdefault(holding.told[0], deque(maxlen=99)).append(holding.took)
        self.folding[task] = taken = Taken(
            task, holding, row.actor, effect.onto, message.steps, product if holding.counts else None
        )
        if holding.counts:
            self.books.taken[taken.number] = taken


def _told(task: Task | Assign) -> tuple[str, bool, Words]:
    """The kind, counts and words of a task: all that a worker learns of a task beside its name and clients."""
    return (task.kind, task.counts, task.words)
